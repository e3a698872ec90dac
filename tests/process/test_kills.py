"""Commands that get a signal, or are killed, at a random moment, and what they have kept then."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sprfast.formats import model as model_file
from sprfast.training.checkpoint import checkpoint_path
from support import ROOT
from support.command_line import TRAIN

RUNS = 20  # of each command in the long case, each with up to three signals
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Has everything imported, and forks for each command, since starting Python takes most of its time.
STARTER = """
import json, os, signal, sys, threading, time, traceback
import matplotlib.figure, torch, torch._dynamo, torch.optim.swa_utils
from sprfast.bench.core import report
from sprfast.cli import app
from sprfast.data import figure
from sprfast.engine import engine, load
from sprfast.evaluation import calibration
from sprfast.training import train

torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        code = 99
        try:
            sys.argv = ["sprfast", *asked["arguments"]]
            out = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            app.main()
        except SystemExit as error:
            code = error.code or 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    started = time.monotonic()
    if asked["signal"]:
        time.sleep(asked["after"])
        os.kill(child, asked["signal"])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.monotonic() - started]), flush=True)
"""


class Starter:
    """Runs commands, and sends each a signal at a moment of its usual time."""

    def __init__(self, log):
        self._log, self._random, self._seconds = log, random.Random(7), {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, number=0, after=0.0):
        asked = {"arguments": list(map(str, arguments)), "signal": number, "after": after, "log": str(self._log)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code, seconds = json.loads(self._process.stdout.readline())
        said = self._log.read_text()
        assert "Traceback" not in said, said
        if not number:
            assert code == 0, said
            self._seconds[arguments[0]] = seconds
        return code

    def disturbed(self, *arguments):
        """Run a command that is sent a signal, or killed, at some moment of its time."""
        number = self._random.choice(SIGNALS)
        code = self.run(*arguments, number=number, after=self._random.uniform(0, self._seconds[arguments[0]]))
        assert code in {0, -number, 128 + number}, (code, number, self._log.read_text())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    started = Starter(tmp_path_factory.mktemp("log") / "log")
    yield started
    started.close()


long = pytest.param(RUNS, marks=pytest.mark.process)


@pytest.mark.parametrize("runs", [1, long])
def test_predict_keeps_every_row_through_any_signal(runs, starter, model_path, pictures, tmp_path):
    images = [str(path) for path in pictures] * 5  # two batches
    starter.run("predict", model_path, *images, "-o", tmp_path / "undisturbed")
    for number in range(runs):
        output = tmp_path / f"out-{number}"
        results = output / "results.jsonl"
        kept = b""
        for _ in range(3):
            starter.disturbed("predict", model_path, *images, "-o", output, "--resume")
            content = results.read_bytes() if results.exists() else b""
            assert content.startswith(kept)
            kept = content[: content.rfind(b"\n") + 1]
        starter.run("predict", model_path, *images, "-o", output, "--resume")
        assert results.read_bytes().startswith(kept)
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        assert [row["path"] for row in rows] == images
        assert {row["overlay"] for row in rows} | {"results.jsonl"} == set(os.listdir(output))


@pytest.mark.parametrize("runs", [1, long])
def test_calibrate_loses_no_model_through_any_signal(runs, starter, model_path, tmp_path):
    sha256 = model_file.load(model_path).sha256
    starter.run("calibrate", model_path, "--threshold", 1)
    for number in range(runs):
        starter.disturbed("calibrate", model_path, "--threshold", number + 2)
        model = model_file.load(model_path)
        assert model.sha256 == sha256
        assert model.scoring_mode.threshold.value in {number + 1, number + 2}
        starter.run("calibrate", model_path, "--threshold", number + 2)
        assert os.listdir(tmp_path) == [model_path.name]


@pytest.mark.parametrize("runs", [long])
def test_train_loses_no_model_and_no_checkpoint_through_any_signal(runs, starter, small_model, pictures, tmp_path):
    output = tmp_path / "model.safetensors"
    arguments = ["train", Path(pictures[0]).parent, "-o", output, *TRAIN, "--checkpoint-every", "1ms", "--force"]
    starter.run(*arguments)
    trained, before = model_file.load(output).sha256, small_model.sha256
    for _ in range(runs):
        model_file.save(output, small_model)
        starter.disturbed(*arguments)
        for _ in range(2):
            assert model_file.load(output).sha256 in {before, trained}
            resume = ["--resume"] if checkpoint_path(output).exists() else []
            starter.disturbed(*arguments, *resume)
        resume = ["--resume"] if checkpoint_path(output).exists() else []
        starter.run(*arguments, *resume)
        assert model_file.load(output).sha256 == trained
        assert os.listdir(tmp_path) == [output.name]
