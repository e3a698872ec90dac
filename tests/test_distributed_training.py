"""Data-parallel training: two gloo processes under torchrun, as one process with the same global batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sprfast import archive, model_file
from sprfast.checkpoint import checkpoint_path

ROOT = Path(__file__).parents[1]
STEPS = 6

SCRIPT = """
import json, os, sys
from pathlib import Path
from sprfast import training
from sprfast.config import NetworkConfig, Preprocessing, TrainingConfig
from sprfast.errors import SprfastError

folder, output, steps, batch_size = sys.argv[1:]
rank = os.environ.get("RANK", "0")

def on_step(progress):
    Path(output).with_name(f"pid{rank}").write_text(str(os.getpid()))
    Path(output).with_name(f"step{rank}").write_text(str(progress.step))

try:
    outcome = training.train(
        sorted(Path(folder).iterdir()),
        Path(output),
        network=NetworkConfig(32, 8),
        preprocessing=Preprocessing(size=16),
        training=TrainingConfig(epochs=0, steps=int(steps), batch_size=int(batch_size)),
        device="cpu",
        on_step=on_step,
    )
except SprfastError as error:
    sys.exit(f"{type(error).__name__}: {error}")
result = {"losses": outcome.losses, "step": outcome.step, "stopped_by": outcome.stopped_by and outcome.stopped_by.name}
Path(output).with_name(f"result{rank}").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    generator = np.random.default_rng(0)
    for i in range(7):
        PIL.Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def start(folder, output, *, processes, steps=STEPS, batch_size=4):
    script = output.with_name("script.py")
    script.write_text(SCRIPT)
    launcher = []
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder), str(output), str(steps), str(batch_size)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def result(output, rank):
    return json.loads(output.with_name(f"result{rank}").read_text())


def is_norm(name):
    """GroupNorm is at 1 and 4 of a block of two convolutions."""
    return name.split(".")[-2] in ("1", "4")


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def test_two_processes_train_as_one_with_the_same_global_batch(folder, tmp_path):
    outputs = [tmp_path / str(processes) / "model.safetensors" for processes in (1, 2)]
    for processes, output in enumerate(outputs, start=1):
        output.parent.mkdir()
        run = start(folder, output, processes=processes)
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    one, two = [np.array(result(output, 0)["losses"]) for output in outputs]
    assert one.shape == two.shape == (STEPS, 2)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert result(outputs[1], 1) == result(outputs[1], 0)
    weights, others = [model_file.load(output).weights for output in outputs]
    for name, weight in weights.items():
        # with one channel a group, GroupNorm cancels the bias before it, and AdamW scales its gradient's rounding error up
        if name.endswith("bias") and "double_conv" in name and weight.shape == (32,) and not is_norm(name):
            continue
        assert (weight - others[name]).abs().mean() < 1e-5, name  # a step moves each weight by about 1e-4
    assert sorted(path.name for path in outputs[1].parent.glob("model*")) == ["model.safetensors"]


def test_batch_that_cannot_be_shared_equally_is_an_input_error(folder, tmp_path):
    run = start(folder, tmp_path / "model.safetensors", processes=2, batch_size=5)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "InputError: batch_size: 5 cannot be shared equally among 2 processes" in errors
    assert not checkpoint_path(tmp_path / "model.safetensors").exists()


def test_sigterm_to_torchrun_stops_all_processes_at_one_step_with_a_checkpoint(folder, tmp_path):
    output = tmp_path / "model.safetensors"
    run = start(folder, output, processes=2, steps=10_000)
    wait_for(tmp_path / "step1")
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert result(output, 0)["stopped_by"] == result(output, 1)["stopped_by"] == "SIGTERM"
    assert result(output, 0)["step"] == result(output, 1)["step"] < 10_000
    assert archive.read(checkpoint_path(output), kind="checkpoint")[1]["step"] == result(output, 0)["step"]
    assert not output.exists()


def test_death_of_one_process_ends_the_other(folder, tmp_path):
    run = start(folder, tmp_path / "model.safetensors", processes=2, steps=10_000)
    wait_for(tmp_path / "pid1")
    wait_for(tmp_path / "pid0")
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode != 0
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid0').read_text()}")
