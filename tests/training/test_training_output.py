"""What a training needs and leaves on the disk: files, locks, descriptors, checkpoints."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sprfast.config import Schedule
from sprfast.errors import InputError
from sprfast.formats import model as model_file
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import files
from sprfast.training.checkpoint import checkpoint_path
from support import ROOT
from support.training_runs import stop_after, train

FULL_DISK = """
import resource, sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_training
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    test_training.train([Path(path) for path in sys.argv[3:]], Path(sys.argv[2]), resume=True, checkpoint_every=0.0)
except test_training.InputError as error:
    print(error)
"""


@pytest.mark.process
def test_full_disk_keeps_the_old_checkpoint(paths, output):
    train(paths, output, on_step=stop_after(2))
    before = checkpoint_path(output).read_bytes()
    assert len(before) > 2**20
    done = python(FULL_DISK, Path(__file__).parent, output, *paths)
    assert "cannot be written (File too large); the old file, if any, is unchanged" in done.stdout, done.stderr
    assert checkpoint_path(output).read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == [checkpoint_path(output).name]
    assert train(paths, output, resume=True).step == 6


FEW_FILES = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
assert test_training.train([Path(path) for path in sys.argv[3:]], Path(sys.argv[2]), workers=2).step == 6
"""


def test_training_runs_with_64_file_descriptors(paths, output):
    done = python(FEW_FILES, Path(__file__).parent, output, *paths)
    assert done.returncode == 0, done.stderr
    assert output.exists()


def python(script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_that_is_there_is_replaced_by_force_only(paths, output):
    train(paths, output, steps=1, force=False)
    before = output.read_bytes()
    with pytest.raises(InputError, match="exists already; give --force"):
        train(paths, output, steps=1, force=False)
    assert output.read_bytes() == before
    assert train(paths, output, steps=2).step == 2


def test_a_training_killed_at_its_very_end_resumes_over_its_own_result_only(paths, output, small_model):
    train(paths, output, steps=2, on_step=stop_after(1))
    kept = checkpoint_path(output).read_bytes()
    sha256 = train(paths, output, steps=2, resume=True, force=False).model.sha256
    checkpoint_path(output).write_bytes(kept)  # as where the process was killed before it could be removed
    assert train(paths, output, steps=2, resume=True, force=False).model.sha256 == sha256
    calibrated = dataclasses.replace(
        model_file.load(output), scoring_mode=ScoringMode(Schedule(), threshold=threshold.manual(1.0))
    )
    for other in (calibrated, small_model):
        checkpoint_path(output).write_bytes(kept)
        model_file.save(output, other)
        with pytest.raises(InputError, match="exists already"):
            train(paths, output, steps=2, resume=True, force=False)
        assert model_file.load(output).sha256 == other.sha256


def test_a_second_training_of_one_output_is_refused(paths, output):
    refused = []

    def second(_):
        with pytest.raises(InputError, match="another process is working on it") as error:
            train(paths, output, steps=1)
        refused.append(error)

    assert train(paths, output, steps=1, on_step=second).step == 1
    assert len(refused) == 1
    assert os.listdir(output.parent) == [output.name]


def test_what_a_killed_training_left_beside_its_output_is_removed_by_the_next_start(paths, output):
    for path in (output, checkpoint_path(output), output.with_name("other")):
        child = os.fork()
        if not child:
            alone = contextlib.nullcontext() if path == checkpoint_path(output) else files.exclusive(path)
            with alone, files.atomic_write(path):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    left = {name for name in os.listdir(output.parent) if name.startswith(".")}
    assert len(left) == 5
    train(paths, output, steps=1, on_step=stop_after(1))
    train(paths, output, steps=1, resume=True)
    names = {name for name in os.listdir(output.parent) if name.startswith(".")}
    assert len(names) == 2  # of the other file
    assert names < left


@pytest.mark.parametrize("name", [".", "..", "/", "pipe"])
def test_an_output_that_is_no_file_is_refused_before_the_training(name, paths, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        train(paths, Path(name))
    assert os.listdir(tmp_path) == ["pipe"]


def test_an_output_that_is_an_image_to_train_on_is_refused(paths, tmp_path):
    copies = [Path(shutil.copy(path, tmp_path)) for path in paths]
    before = copies[0].read_bytes()
    with pytest.raises(InputError, match="is read here"):
        train(copies, copies[0])
    assert copies[0].read_bytes() == before


def test_a_hang_up_keeps_a_checkpoint(paths, output):
    outcome = train(paths, output, on_step=lambda _: os.kill(os.getpid(), signal.SIGHUP))
    assert (outcome.stopped_by, outcome.step) == (signal.SIGHUP, 1)
    assert checkpoint_path(output).exists()
