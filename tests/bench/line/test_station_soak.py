"""A whole station with a plant around it: what is right holds every check, and what is lost, mixed
up or passed while the connection is down is named.
"""

import collections
import dataclasses
import time
from types import SimpleNamespace

import pytest

from sprfast.bench.line import plant, station
from sprfast.bench.line.plant import Belt, Cut, Decision
from sprfast.bench.line.soak.report import failures
from sprfast.bench.line.soak.samples import ProcessSample
from sprfast.errors import CheckFailedError, InputError
from sprfast.formats.log_verification import Verification
from support.line_cases import eventually

pytest.importorskip("pymodbus", reason="pip install 'sprfast[plc]'")
pytest.importorskip("starlette", reason="pip install 'sprfast[station]'")

FIRST = 700  # part of picture 0
VERDICTS = ("PASS", "REJECT", "ERROR", "PASS", "PASS")
HOW = ("OK", "NG", "ERROR", "TIMEOUT", "MISSED")


@pytest.mark.clock
def test_a_station_holds_every_check_while_its_connection_drops(model_path, pictures):
    report = station.soak(model_path, pictures[0].parent, 160, 2, 0.06)
    assert failures(report) == []
    assert sum(report["verdicts"].values()) == 160
    assert (report["drops"], report["connections"] >= 3) == (2, True)
    assert report["decided_while_down"].keys() <= {"MISSED", "TIMEOUT"}
    assert report["decided"]["OK"] > 0 < report["decided"]["NG"]
    assert [sample["threads"] for sample in report["samples"]][-1] > 1


@pytest.mark.parametrize(
    ("frames", "drops", "period", "said"),
    [
        (0, 0, 0.1, "frames: 0"),
        (1, 2, 0.1, "drops: 2"),
        (9, 1, 0.0, "period: 0.0"),
        (9, 1, float("nan"), "period: nan"),
    ],
)
def test_numbers_that_are_not_allowed(tmp_path, frames, drops, period, said):
    with pytest.raises(InputError, match=f"{said} is not allowed"):
        station.soak(tmp_path / "model.safetensors", tmp_path, frames, drops, period)


def test_connections_are_lost_over_the_whole_run_and_in_every_phase():
    planned = plant.cuts(9, 900)
    assert planned == plant.cuts(9, 900) != plant.cuts(9, 900, seed=1)
    assert collections.Counter(cut.phase for cut in planned) == dict.fromkeys(plant.PHASES, 3)
    assert [cut.part // 100 for cut in planned] == list(range(9))
    assert min(cut.seconds for cut in planned) < plant.Program().watchdog < max(cut.seconds for cut in planned)


def test_a_belt_triggers_a_station_that_is_ready_and_rejects_all_others():
    server, period = SimpleNamespace(reached=True, cut=lambda seconds: setattr(server, "reached", False)), 0.02
    belt = Belt(period, 0.05, [Cut(3, "triggered", 0.1)], SimpleNamespace(value=0))
    belt.each_cycle()
    assert belt.decisions == []  # it does not run yet
    belt.server, belt._running.value = server, 1

    def become(how, ready):
        belt.take([ready, False, False, True, False, not belt.heartbeat])
        belt.each_cycle()
        time.sleep(0.001)
        return [each for each in belt.decisions if each.how == how][2:]

    assert eventually(lambda: become("MISSED", False))
    assert {each.how for each in belt.decisions} == {"MISSED"}  # the station is not ready
    assert eventually(lambda: become("TIMEOUT", True))
    assert belt.cut == 1
    assert not any(each.connected for each in belt.decisions if each.how == "TIMEOUT")
    parts = sorted(each.part for each in belt.decisions)
    assert parts[-1] - parts[0] - len(parts) + 1 in (0, 1)  # the one that has a TRIGGER now
    assert len(set(parts)) == len(parts)


def outcome(**changed):
    """Of five parts without a fault, and what is changed."""
    records = [{"id": f"camera-{number}", "verdict": verdict} for number, verdict in enumerate(VERDICTS)]
    decisions = [
        Decision(FIRST + number, how, f"camera-{number}" if how in station.DECIDED.values() else "", number < 3)
        for number, how in enumerate(HOW)
    ]
    counts = '{"taken": 5, "refused": 0, "drained": true, "PASS": 3, "REJECT": 1, "ERROR": 1}'
    said = "12:00 modbus 127.0.0.1:502: connected\n"
    command = SimpleNamespace(out=["ready\n", "reject camera-1: x\n", "reject camera-2: y\n", counts], err=[said, said])
    sample = ProcessSample(1, 1.0, 1e5, 9.0, None, 12.0, 1.0, 2.0)
    found = station.Outcome(
        frames=5,
        drops=1,
        command=command,
        viewer=SimpleNamespace(logged=5, answers=5, faults=1),
        samples=[dataclasses.replace(sample, frames=number + 1) for number in range(5)],
        warm=2,
        exit_code=0,
        decisions=decisions,
        repeated=0,
        cut=1,
        records=records,
        verification=Verification(records=6, answers=5),
    )
    for name, value in changed.items():
        setattr(found, name, value(getattr(found, name)) if callable(value) else value)
    return found


def without(number):
    return lambda given: [each for place, each in enumerate(given) if place != number]


def changed(number, **fields):
    return lambda given: [
        dataclasses.replace(each, **fields) if place == number else each for place, each in enumerate(given)
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, []),
        ({"records": without(0)}, ["each id is answered once", "the station counts right"]),
        ({"records": lambda given: [*given, given[0]]}, ["each id is answered once", "the station counts right"]),
        ({"decisions": without(3)}, ["each part is decided once"]),
        ({"decisions": lambda given: [*given, given[3]]}, ["each part is decided once"]),
        ({"repeated": 1}, ["each part is decided once"]),
        ({"decisions": changed(0, connected=False)}, ["no part passes while the connection is down"]),
        ({"decisions": changed(0, id="camera-1")}, ["each part is decided by its own picture"]),
        ({"decisions": changed(1, how="OK")}, ["each part is decided by its own picture"]),
        ({"decisions": changed(1, id="x")}, ["each part is decided by its own picture"]),
        ({"cut": 0}, ["the connection is lost as often as planned"]),
        ({"viewer": SimpleNamespace(logged=3, answers=3, faults=1)}, ["the viewer is there to the end"]),
        ({"verification": Verification(answers=5, problem="line 3: was changed")}, ["the log verifies"]),
        ({"verification": Verification(answers=5, lost=1)}, ["the log verifies"]),
        ({"exit_code": None}, ["the station counts right", "the station ends by itself"]),
        ({"samples": changed(4, threads=10.0)}, ["threads do not grow"]),
        ({"samples": changed(4, descriptors=13.0)}, ["descriptors do not grow"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, named):
    report = station._report(outcome(**change), tmp_path / "model.safetensors", 0.1)
    found = {said.partition(":")[0] for said in failures(report)}
    assert found >= set(named)
    assert bool(found) is bool(named)


@pytest.mark.process
def test_a_station_that_does_not_start_is_named(tmp_path, pictures):
    with pytest.raises(CheckFailedError, match=r"the station did not start: .*absent\.safetensors"):
        station.soak(tmp_path / "absent.safetensors", pictures[0].parent, 9, 0, 0.1)
