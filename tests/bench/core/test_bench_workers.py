"""Several processes against one: real processes, small model."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from sprfast.bench.core import workers
from sprfast.bench.core.workers import Way
from sprfast.errors import BackendError, ModelFileError
from sprfast.method.threshold import CLEARANCE


def test_the_ways_are_one_process_of_all_threads_and_one_or_all_of_one():
    assert workers.ways(2) == (Way(1, 2), Way(1, 1), Way(2, 1))
    assert workers.ways(1) == (Way(1, 1),)


@pytest.mark.parametrize(("backend", "tolerance"), [("eager", CLEARANCE), ("cpu", 0.0)])
def test_all_ways_score_alike_and_take_turns(backend, tolerance, run, model_path, pictures, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = run(
        "bench", "workers", model_path, "--images", pictures[0].parent, "--seconds", "1", "--backend", backend, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert (document["backend"], document["tolerance"]) == (backend, tolerance)
    assert list(document["ways"]) == ["1 x 2", "1 x 1", "2 x 1"]
    assert (document["images"], document["rounds"] >= workers.ROUNDS) == (4, True)
    for each in document["ways"].values():
        assert each["equal_scores"]
        assert 0 < each["ratio"]["min"] <= each["ratio"]["median"] <= each["ratio"]["max"]
        assert each["ms"]["median"] * each["images_per_s"]["median"] == pytest.approx(1e3 * each["processes"], rel=0.7)
    assert document["ways"]["1 x 2"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_what_a_process_cannot_do_is_an_error_here(run, model_path, tmp_path):
    code, out, err = run(
        "bench", "workers", model_path, "--backend", "triton_of_old", "--workers", "1", "--seconds", "1"
    )
    assert (code, out) == (2, "")
    assert "triton_of_old" in err
    assert len(err.splitlines()) == 1
    for options, why in (
        (("--workers", "0"), "--workers 0: expected 1 to 256"),
        (("--seconds", "0"), "--seconds 0.0: expected"),
    ):
        code, _, err = run("bench", "workers", model_path, *options)
        assert code == 2
        assert why in err
    with pytest.raises(ModelFileError, match="nothing-here"):
        workers.measure(tmp_path / "nothing-here", "eager", None, 1, 1.0)


def test_a_killed_process_is_an_error_and_not_an_end_without_a_word(model_path):
    """Also where it is only noticed as the next turn is asked for."""

    def kill():
        while len(multiprocessing.active_children()) < 3:
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    with pytest.raises(BackendError, match="a process ended"):
        workers.measure(model_path, "eager", None, 2, 60.0)
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(BackendError, match="a process ended"):
        workers._turn([ours], 1)


def test_an_interrupt_is_left_to_the_process_that_measures(model_path):
    with workers._team(Way(1, 1), model_path, "eager", None) as team:
        workers._heard(team[0])
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGINT)
        assert workers._turn(team, 1)["ms"] > 0
