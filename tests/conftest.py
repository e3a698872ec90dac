import json
import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.cli import app as cli
from sprfast.cli import console
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.formats import model as model_file
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet
from support.emulator import Emulator, missing


def pytest_configure():
    """One thread, unless told otherwise: the networks are tiny, and threads that wait for a busy
    core take minutes.

    Without a CUDA device the kernels run in Triton's interpreter, which must be chosen before they
    are imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_folder():
    """Inputs and outputs of the published code for three small cases."""
    return Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden_document(golden_folder):
    return json.loads((golden_folder / "golden.json").read_text())


@pytest.fixture(scope="session")
def small_model():
    """A narrow network for 32x32 images whose untrained output is loud enough to tell images
    apart.
    """
    config = NetworkConfig(base_width=32, embedding_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: value.detach() for name, value in ScoreUNet(config).state_dict().items()}
    weights["outc.conv.weight"] *= 10
    return Model(
        config,
        ScoringMode(Schedule((Level(1e-3, 2),)), threshold=threshold.manual(0.023)),
        Preprocessing(size=32),
        weights,
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Paths of four PNG files, 32x32, that score differently with `small_model`."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    paths = [folder / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        contrast = 0.25 * (index + 1)
        PIL.Image.fromarray((random.random((32, 32, 3)) * 255 * contrast).astype(np.uint8)).save(path)
    return paths


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """What runs code that is compiled for aarch64."""
    if reason := missing():
        pytest.skip(reason)
    started = Emulator(tmp_path_factory.mktemp("aarch64"))
    yield started
    started.close()


@pytest.fixture
def bfloat16_on_any_processor(monkeypatch):
    """Backend cpu computes bfloat16 here: without AMX in plain loops, asked for by name."""
    if library.unavailable():
        pytest.skip(library.unavailable())
    if library.amx_missing():
        monkeypatch.setenv(library.VARIABLE, library.available("bfloat16")[0])
    library.instruction_set.cache_clear()
    yield
    library.instruction_set.cache_clear()


@pytest.fixture
def without_cpu_kernels(monkeypatch):
    """The CPU kernels cannot run; the reason."""
    monkeypatch.setenv(library.VARIABLE, "nosuch")
    library.instruction_set.cache_clear()
    yield library.unavailable()
    library.instruction_set.cache_clear()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: (exit code, stdout, stderr), the latter without lines of
    progress.
    """
    monkeypatch.setattr(console, "FIRST", 1e6)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sprfast", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def model_path(small_model, tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.save(path, small_model)
    return path
