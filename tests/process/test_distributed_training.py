"""Training by two gloo processes under torchrun: as one process does it, and what happens where one
of them is gone.
"""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sprfast.formats import model as model_file
from sprfast.formats import tensors as archive
from sprfast.training.checkpoint import checkpoint_path
from support.command_line import without_progress
from support.torchrun import free_port, popen, torchrun

STEPS = 6

SCRIPT = """
import json, os, sys
from pathlib import Path
from sprfast.training import train as training
from sprfast.config import NetworkConfig, Preprocessing, TrainingConfig
from sprfast.errors import SprfastError

folder, output, steps, batch_size, precision = sys.argv[1:]
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
        training=TrainingConfig(epochs=0, steps=int(steps), batch_size=int(batch_size), precision=precision),
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


def start(folder, output, *, processes, steps=STEPS, batch_size=4, precision="float32"):
    script = output.with_name("script.py")
    script.write_text(SCRIPT)
    launcher = torchrun() if processes > 1 else []
    return popen([*launcher, script, folder, output, steps, batch_size, precision])


def result(output, rank):
    return json.loads(output.with_name(f"result{rank}").read_text())


def is_norm(name):
    """GroupNorm is at 1 and 4 of a block of two convolutions."""
    return name.split(".")[-2] in ("1", "4")


def wait_for(path):
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.process
@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-4), ("bfloat16", 1e-3)])
def test_two_processes_train_as_one_with_the_same_global_batch(folder, tmp_path, precision, rounding):
    outputs = [tmp_path / str(processes) / "model.safetensors" for processes in (1, 2)]
    for processes, output in enumerate(outputs, start=1):
        output.parent.mkdir()
        run = start(folder, output, processes=processes, precision=precision)
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    one, two = [np.array(result(output, 0)["losses"]) for output in outputs]
    assert one.shape == two.shape == (STEPS, 2)
    np.testing.assert_allclose(two, one, rtol=rounding)
    assert result(outputs[1], 1) == result(outputs[1], 0)
    weights, others = [model_file.load(output).weights for output in outputs]
    for name, weight in weights.items():
        # with one channel a group, GroupNorm cancels the bias before it, and AdamW scales its
        # gradient's rounding error up
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


@pytest.mark.process
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


def endless(folder, output, timeout):
    """Arguments of sprfast for a training without an end in sight."""
    recipe = ["--size", 16, "--width", 32, "--steps", 100_000, "--batch-size", 2, "--workers", 0, "--device", "cpu"]
    return ["-m", "sprfast", "train", folder, "-o", output, *recipe, "--process-timeout", timeout]


@pytest.fixture
def trained(folder, tmp_path):
    """A training on two processes that is under way: torchrun, the processes' ids, the model's
    path, and what a process has printed.
    """
    output = tmp_path / "model.safetensors"
    run = popen([*torchrun("--log-dir", tmp_path / "logs", "--redirects", "3"), *endless(folder, output, "10s")])
    pids = []
    try:
        wait_for(checkpoint_path(output))  # which the first writes when both have met
        time.sleep(0.5)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        variables = {int(pid): Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children}
        pids += [next(pid for pid, values in variables.items() if f"RANK={rank}" in values) for rank in (0, 1)]
        yield (
            run,
            pids,
            output,
            lambda rank: next((tmp_path / "logs").glob(f"*/attempt_0/{rank}/stderr.log")).read_text(),
        )
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
        run.terminate()
        run.wait(timeout=60)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_sentence(printed, rank, *parts):
    """The last line that a process of two prints that misses the other."""
    assert "Traceback" not in printed
    (said,) = without_progress(printed)
    assert said.startswith(f"sprfast: process {rank} of 2: waited ")
    for part in (*parts, "start all of them again", "--resume"):
        assert part in said


@pytest.mark.process
def test_killed_process_is_a_sentence_of_the_other_and_the_checkpoint_stays(trained):
    run, pids, output, printed = trained
    os.kill(pids[1], signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == 1
    assert_sentence(printed(0), 0)
    assert not is_running(pids[0])
    # the next would be written after 5 minutes
    assert archive.read(checkpoint_path(output), kind="checkpoint")[1]["step"] == 0
    assert not output.exists()


@pytest.mark.clock
def test_process_that_hangs_is_a_sentence_of_the_other_after_the_timeout(trained):
    run, pids, output, printed = trained
    os.kill(pids[1], signal.SIGSTOP)
    started = time.monotonic()
    while is_running(pids[0]):
        assert time.monotonic() - started < 30
        time.sleep(0.05)
    assert time.monotonic() - started > 9.5  # it was waited for
    os.kill(pids[1], signal.SIGCONT)
    run.communicate(timeout=60)
    assert run.returncode == 1
    assert_sentence(printed(0), 0, "Timed out waiting 10000ms")
    if printed(1):  # torchrun ends it as soon as it runs again, at times before it has said anything
        assert_sentence(printed(1), 1)
    assert checkpoint_path(output).exists()


@pytest.mark.process
@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_never_comes_is_a_sentence_after_the_timeout(rank, folder, tmp_path):
    output = tmp_path / "model.safetensors"
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    run = popen(endless(folder, output, "1s"), RANK=str(rank), LOCAL_RANK=str(rank), **where)
    _, printed = run.communicate(timeout=60)
    assert run.returncode == 1
    assert_sentence(printed, rank, "for their start")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(
    ("timeout", "environment", "expected"),
    [
        ("0.5s", {}, "process timeout: 0.5 s is not allowed"),
        ("2d", {}, "process timeout: 172800 s is not allowed"),
        ("1s", {"RANK": "first"}, "RANK: the environment has 'first'"),
        ("1s", {"WORLD_SIZE": "2"}, "start sprfast with torchrun"),
    ],
)
def test_bad_timeout_or_environment_is_an_input_error(
    timeout, environment, expected, folder, tmp_path, run, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, printed = run(*endless(folder, tmp_path / "model.safetensors", timeout)[2:])
    assert code == 2
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert not list(tmp_path.glob("model*"))


THREADS = """
import atexit, os
from pathlib import Path

def gloo_threads():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

def end():
    os.write(1, b"end %d\\n" % gloo_threads())  # in one piece, as two processes write

atexit.register(end)  # runs after what the group registers
from sprfast.system.process_group import ProcessGroup

group = ProcessGroup(60.0)
import torch._dynamo  # which imports the rest of torch.distributed

group.gather(0)
assert gloo_threads()
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux's /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that did would meet an interpreter that is gone, and sometimes abort the process."""
    script = tmp_path / "script.py"
    script.write_text(THREADS)
    run = popen([*torchrun(), script])
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert out.split() == ["end", "0"] * 2
