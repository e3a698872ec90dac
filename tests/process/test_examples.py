"""Every example as its user runs it, in a process of its own, with the simulated camera or a
folder.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sprfast.formats import model as model_file
from support import ROOT
from support.line_cases import PATIENCE

EXAMPLES = ROOT / "examples"


@contextlib.contextmanager
def running(example, *arguments):
    """A process, whose output lines can be read while it runs; it is gone at the end."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished(process):
    """Exit code, last line of the output as it stands, errors."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines(), err


def test_each_example_is_run_here():
    run = Path(__file__).read_text("utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'running("{path.name}"' in run, path


def test_a_watched_folder(model_path, pictures, tmp_path):
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    shutil.copy(pictures[0], incoming / "0.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running("watch_folder.py", model_path, incoming, "--existing", "--metrics-port", port) as process:
        assert json.loads(process.stdout.readline())["image"] == "0.png"
        shutil.copy(pictures[3], incoming / "3.png")
        (incoming / "bad.png").write_bytes(pictures[1].read_bytes()[:100])
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE).read().decode()
        process.send_signal(signal.SIGTERM)
        code, lines, log = finished(process)
    verdicts = {answer["image"]: answer["verdict"] for answer in answers}
    assert (code, lines, verdicts["bad.png"]) == (143, [], "ERROR")
    assert verdicts["3.png"] in ("PASS", "REJECT")
    assert "sprfast_images_total{" in metrics
    assert "WARNING sprfast.line: frame bad.png: " in log.splitlines()[0]


@pytest.mark.process
def test_a_model_is_replaced_under_a_running_line(model_path, small_model, pictures):
    other = dataclasses.replace(small_model, weights={name: value * 1.1 for name, value in small_model.weights.items()})
    with running("hot_swap.py", model_path, pictures[0].parent) as process:
        assert process.stdout.readline() == f"model {small_model.sha256[:12]} serves\n"
        model_path.write_bytes(b"not a model")
        assert process.stdout.readline().startswith("the old model goes on: ")
        model_file.save(model_path, other)
        assert process.stdout.readline() == f"model {other.sha256[:12]} serves\n"
        process.send_signal(signal.SIGTERM)
        code, lines, errors = finished(process)
    assert (code, errors) == (143, "")
    assert lines[-1].endswith("1 swaps")
    assert "ERROR" not in lines[-1]
