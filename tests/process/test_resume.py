"""Trainings that are killed, stopped and resumed; those marked in processes of their own."""

import dataclasses
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.errors import InputError, ModelFileError
from sprfast.formats import model as model_file
from sprfast.formats import tensors as archive
from sprfast.training import train as training
from sprfast.training.checkpoint import checkpoint_path
from support import ROOT

STEPS = 16
RECIPE = {
    "network": NetworkConfig(32, 8),
    "preprocessing": Preprocessing(size=16),
    "schedule": Schedule(),
    "training": TrainingConfig(epochs=0, steps=STEPS, batch_size=4),
}

SCRIPT = """
import sys
from pathlib import Path
from sprfast.training import train as training
from sprfast.config import NetworkConfig, Preprocessing, TrainingConfig

folder, output, steps, resume, checkpoint_every, precision = sys.argv[1:]
outcome = training.train(
    sorted(Path(folder).iterdir()),
    Path(output),
    network=NetworkConfig(32, 8),
    preprocessing=Preprocessing(size=16),
    training=TrainingConfig(epochs=0, steps=int(steps), batch_size=4, precision=precision),
    device="cpu",
    workers=1,
    resume=resume == "resume",
    checkpoint_every=float(checkpoint_every),
    on_step=lambda progress: print("step", progress.step, flush=True),
)
print("end", outcome.stopped_by.name if outcome.stopped_by else None, outcome.step, flush=True)
"""


class Run:
    """A training in a process of its own, after its first step."""

    def __init__(self, folder, output, *, resume, checkpoint_every=300.0, precision="float32"):
        arguments = [folder, output, STEPS, "resume" if resume else "start", checkpoint_every, precision]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first_step = self.next_step()
        pid = self.process.pid
        self.workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def next_step(self):
        line = self.process.stdout.readline()
        assert line.startswith("step"), line
        return int(line.split()[1])

    def end(self):
        """(signal that stopped it or None, steps done) as the training itself reports it."""
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        _, stopped_by, step = output.splitlines()[-1].split()
        return (None if stopped_by == "None" else stopped_by), int(step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    generator = np.random.default_rng(0)
    for i in range(6):
        PIL.Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """SHA-256 of the weights of a training in a precision that was never stopped."""

    @functools.cache
    def in_precision(precision="float32"):
        return finished(folder, tmp_path_factory.mktemp(precision) / "model.safetensors", precision=precision)

    return in_precision


@pytest.fixture(scope="module")
def stopped(folder, tmp_path_factory):
    """The output of a training that was stopped after its second step."""
    output = tmp_path_factory.mktemp("stopped") / "model.safetensors"
    outcome = training.train(
        sorted(folder.iterdir()), output, **RECIPE, device="cpu", workers=0, on_step=interrupt_at_step_2
    )
    assert (outcome.model, outcome.stopped_by, outcome.step) == (None, signal.SIGINT, 2)
    return output


def finished(folder, output, *, resume=False, reached=1, precision="float32"):
    """SHA-256 of the weights that a training in this process ends with; its first step is not
    before `reached`.
    """
    steps = []
    training.train(
        sorted(folder.iterdir()),
        output,
        **RECIPE | {"training": dataclasses.replace(RECIPE["training"], precision=precision)},
        device="cpu",
        workers=0,
        resume=resume,
        on_step=lambda progress: steps.append(progress.step),
    )
    assert reached <= steps[0]
    assert steps == list(range(steps[0], STEPS + 1))
    assert not checkpoint_path(output).exists()
    return model_file.load(output).sha256


def interrupt_at_step_2(progress):
    if progress.step == 2:
        os.kill(os.getpid(), signal.SIGINT)


def still_running(processes, seconds=0.0):
    """Those of `processes` that run `seconds` later, or [] as soon as all have ended."""
    until = time.monotonic() + seconds
    while running := [process for process in processes if os.path.exists(f"/proc/{process}")]:
        if time.monotonic() > until:
            return running
        time.sleep(0.1)
    return []


@pytest.mark.parametrize(
    ("kills", "precision"),
    [(1, "float32"), pytest.param(3, "float32", marks=pytest.mark.process), (1, "bfloat16")],
)
def test_kill_9_at_random_moments_then_resume_gives_the_same_weights(folder, uninterrupted, tmp_path, kills, precision):
    output = tmp_path / "model.safetensors"
    moments = random.Random(20)
    workers, reached = [], [1]
    for number in range(kills):
        run = Run(folder, output, resume=number > 0, checkpoint_every=0.0, precision=precision)
        for _ in range(moments.randint(1, 3)):
            step = run.next_step()
        time.sleep(moments.uniform(0.0, 0.3))
        run.process.kill()
        run.process.communicate(timeout=60)
        assert run.process.returncode == -signal.SIGKILL
        assert not output.exists()
        assert run.first_step >= reached[-1]  # the checkpoint of the step before is never lost
        reached.append(step)
        workers += run.workers
    assert reached == sorted(set(reached))
    assert len(workers) == kills
    assert not still_running(workers, seconds=20.0)
    weights = finished(folder, output, resume=True, reached=reached[-1], precision=precision)
    assert weights == uninterrupted(precision)


@pytest.mark.process
def test_sigterm_and_sigint_stop_after_the_step_and_resume_gives_the_same_weights(folder, uninterrupted, tmp_path):
    output = tmp_path / "model.safetensors"
    done = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        run = Run(folder, output, resume=done > 0)
        assert run.first_step == done + 1
        run.process.send_signal(number)
        stopped_by, done = run.end()
        assert stopped_by == number.name
        assert done < STEPS
        assert archive.read(checkpoint_path(output), kind="checkpoint")[1]["step"] == done
        assert not output.exists()
        assert not still_running(run.workers)
    run = Run(folder, output, resume=True)
    assert run.end() == (None, STEPS)
    assert not still_running(run.workers)
    assert model_file.load(output).sha256 == uninterrupted()


@pytest.mark.process
def test_signal_to_the_whole_process_group_leaves_the_workers_to_the_training(folder, tmp_path):
    """What a terminal does at Ctrl-C, and a service manager at a stop."""
    output = tmp_path / "model.safetensors"
    run = Run(folder, output, resume=False)
    for process in [*run.workers, run.process.pid]:
        os.kill(int(process), signal.SIGTERM)
    stopped_by, step = run.end()
    assert stopped_by == "SIGTERM"
    assert archive.read(checkpoint_path(output), kind="checkpoint")[1]["step"] == step


def test_handlers_of_the_caller_return_after_training(folder, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    training.train(
        sorted(folder.iterdir()),
        tmp_path / "model.safetensors",
        **RECIPE,
        device="cpu",
        workers=0,
        on_step=interrupt_at_step_2,
    )
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"training": TrainingConfig(epochs=0, steps=STEPS, batch_size=4, learning_rate=2e-4)},
            "training.learning_rate = 0.0001",
        ),
        (
            {"training": TrainingConfig(epochs=0, steps=STEPS, batch_size=4, precision="bfloat16")},
            "training.precision = 'float32', this run asks for 'bfloat16'",
        ),
        ({"training": TrainingConfig(epochs=0, steps=2 * STEPS, batch_size=4)}, f"training.steps = {STEPS}"),
        ({"network": NetworkConfig(32, 16)}, "network.embedding_dim = 8"),
        ({"preprocessing": Preprocessing(size=32)}, "preprocessing.size = 16"),
        ({"schedule": Schedule(levels=(RECIPE["schedule"].levels[0],) * 2)}, "schedule.levels"),
    ],
)
def test_resume_with_another_recipe_is_an_input_error_that_names_the_field(folder, stopped, changed, named):
    with pytest.raises(InputError, match=named):
        training.train(sorted(folder.iterdir()), stopped, **RECIPE | changed, device="cpu", workers=0, resume=True)


def test_a_checkpoint_of_a_version_that_knew_fewer_fields_goes_on(folder, stopped, tmp_path):
    output = tmp_path / "model.safetensors"
    arrays, document = archive.read(checkpoint_path(stopped), kind="checkpoint")
    for name in ("warm_up", "decay", "t_sampling", "t_max", "hold_back", "precision"):
        del document["recipe"]["training"][name]
    document["recipe"]["schedule"] = {"levels": document["recipe"]["schedule"]["levels"], "antithetic": False}
    archive.write(checkpoint_path(output), arrays, document, kind="checkpoint")
    outcome = training.train(sorted(folder.iterdir()), output, **RECIPE, device="cpu", workers=0, resume=True)
    assert outcome.step == STEPS


def test_resume_with_other_images_is_an_input_error(folder, stopped):
    with pytest.raises(InputError, match="data_fingerprint"):
        training.train(sorted(folder.iterdir())[1:], stopped, **RECIPE, device="cpu", workers=0, resume=True)


def test_resume_without_a_checkpoint_is_an_input_error(folder, tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        training.train(
            sorted(folder.iterdir()), tmp_path / "model.safetensors", **RECIPE, device="cpu", workers=0, resume=True
        )


@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
def test_flipped_bit_in_a_checkpoint_is_a_model_file_error(folder, stopped, tmp_path, place):
    content = bytearray(checkpoint_path(stopped).read_bytes())
    content[int(place * len(content))] ^= 4
    output = tmp_path / "model.safetensors"
    checkpoint_path(output).write_bytes(content)
    with pytest.raises(ModelFileError, match="checkpoint"):
        training.train(sorted(folder.iterdir()), output, **RECIPE, device="cpu", workers=0, resume=True)


def test_truncated_checkpoint_is_a_model_file_error(folder, stopped, tmp_path):
    output = tmp_path / "model.safetensors"
    checkpoint_path(output).write_bytes(checkpoint_path(stopped).read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="damaged"):
        training.train(sorted(folder.iterdir()), output, **RECIPE, device="cpu", workers=0, resume=True)
