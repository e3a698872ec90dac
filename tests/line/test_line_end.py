"""Callbacks of a line, its end, forks and the end of the process."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from sprfast.engine.engine import Engine
from sprfast.errors import (
    ClosedError,
)
from sprfast.line import Line
from support import ROOT
from support.line_cases import PATIENCE, errors_of, fill, frame


def test_a_callback_that_raises_costs_no_answer(engine, caplog):
    seen = []

    def consume(answer):
        seen.append(answer.id)
        raise ValueError("the valve does not answer")

    with Line(engine, consume) as line:
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(5)]
        futures[0].add_done_callback(lambda future: 1 / 0)
        assert errors_of(futures) == [type(None)] * 5
        assert line.drain(PATIENCE)
        assert line.health().callback_failures == 5
    assert sorted(seen) == list(range(5))
    assert "the valve does not answer" in caplog.text


def test_a_future_cannot_be_cancelled(held):
    engine, network = held
    network.open.set()
    with Line(engine) as line:
        future = fill(line, network, 1)[0]
        assert not future.cancel()
        network.open.set()
        assert future.result(PATIENCE).error is None


def test_a_callback_may_use_the_line(engine):
    closed = threading.Event()

    def consume(answer):
        if answer.id == 0:
            line.submit(frame(1), 1, channel_order="rgb")
        else:
            line.close(0.1)
            closed.set()

    line = Line(engine, consume)
    line.submit(frame(0), 0, channel_order="rgb")
    assert closed.wait(PATIENCE)
    with pytest.raises(ClosedError):
        line.submit(frame(2), 2, channel_order="rgb")


SETUP = """
import faulthandler, os, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
sys.path.insert(0, "tests")
import numpy as np
import sprfast
from support.line_cases import engine_with_network, frame
from sprfast.formats import model as model_file
from sprfast.line import Line
from sprfast.line.in_flight import InFlight
"""


def process(code, model_path, timeout=120):
    script = SETUP + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script, str(model_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.mark.process
def test_the_interpreter_ends_with_work_queued(model_path):
    done = process(
        """
        engine, network = engine_with_network(model_file.load(sys.argv[1]))
        line = Line(engine, lambda answer: print(answer.id, answer.verdict, type(answer.error).__name__, flush=True))
        line.wait_until_started()
        network.open.clear()
        for number in range(3):
            line.submit(frame(number), number, channel_order="rgb")
        """,
        model_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")[:-1]) == ["0 ERROR ClosedError", "1 ERROR ClosedError", "2 ERROR ClosedError"]


def test_a_fork_of_the_process_is_told_so_and_the_parent_goes_on(model_path):
    done = process(
        """
        engine = sprfast.load(sys.argv[1])
        line = Line(engine)
        line.wait_until_started()
        child = os.fork()
        if child == 0:
            try:
                line.submit(frame(1), 1, channel_order="rgb")
            except Exception as error:
                print(type(error).__name__, error, flush=True)
            line.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(line.submit(frame(1), 1, channel_order="rgb").result(60).error)
        line.close()
        """,
        model_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("ClosedError this line was made in process")
    assert second == "None"


def test_models_are_reloaded_without_a_trace(engine, small_model):
    """Descriptors and threads; memory is what `sprfast soak` looks at."""

    def traces():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc here")
    with Line(engine) as line:
        line.swap(Engine(small_model))
        before = traces()
        for number in range(20):
            line.swap(Engine(small_model))
            line.submit(frame(1), number, channel_order="rgb").result(PATIENCE)
        assert traces() == before
    assert line.health().swaps == 21
