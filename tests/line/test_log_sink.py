"""The audit trail of a line: every answer is in the log, or the sink says why not."""

import json
import logging
import os
import threading

import pytest

from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.formats import verdict_log
from sprfast.formats.log_verification import verify
from sprfast.line import Line
from sprfast.line.sinks import log as log_sink
from sprfast.line.sinks.log import LogSink
from sprfast.method import threshold
from support.line_cases import engine_with_network, eventually, frame


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def full_disk(monkeypatch):
    """Set its first item, and nothing can be written."""
    write, full = os.write, [False]

    def limited(descriptor, data):
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(verdict_log.os, "write", limited)
    return full


@pytest.fixture
def answers(small_model):
    """Of three frames."""
    with Line(Engine(small_model, "eager")) as line:
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(3)]
        return [future.result(60) for future in futures]


def test_each_answer_of_a_line_is_a_record_with_the_model_that_gave_it(small_model, tmp_path):
    path, engine = tmp_path / "verdicts.jsonl", Engine(small_model, "eager")
    other = Engine(
        type(small_model)(
            small_model.network,
            small_model.scoring_mode,
            small_model.preprocessing,
            {name: weight * 1.001 for name, weight in small_model.weights.items()},
        ),
        "eager",
    )
    sink = LogSink(path, engine)
    with Line(engine, sink.deliver) as line:
        for seed in range(6):
            line.submit(frame(seed), seed, channel_order="rgb")
        line.submit(b"no picture", "odd")
        assert eventually(lambda: line.health().unanswered == 0)
        line.swap(other)
        sink.swap(other)
        line.submit(frame(9), 9, channel_order="rgb")
    assert sink.fault() == ""
    sink.close()
    found = records(path)
    models = [(place, record["model_sha256"]) for place, record in enumerate(found) if "event" in record]
    assert models == [(0, engine.model_sha256), (8, other.model_sha256)]
    logged = {record["id"]: record for record in found if "event" not in record}
    assert logged.keys() == {*range(6), "odd", 9}
    assert {record["verdict"] for record in logged.values()} == {"PASS", "REJECT", "ERROR"}
    assert logged["odd"]["score"] is None
    assert logged["odd"]["reason"]
    assert (logged[5]["model_sha256"], logged[9]["model_sha256"]) == (engine.model_sha256, other.model_sha256)
    assert logged[5]["threshold"] == 0.023
    assert verify(path).problem == ""


def test_a_frame_that_a_model_has_begun_before_a_swap_is_logged_as_its_own(small_model):
    engine, network = engine_with_network(small_model)
    other, _ = engine_with_network(small_model)
    other.__dict__["model_sha256"] = "other"
    given = []
    with Line(engine, given.append) as line:
        with network.held():
            line.submit(frame(1), 1, channel_order="rgb")
            assert network.entered.wait(60)
            line.swap(other)
        assert eventually(lambda: given)
        line.submit(frame(2), 2, channel_order="rgb")
    assert [answer.model_sha256 for answer in given] == [engine.model_sha256, "other"]


def test_answers_wait_for_a_full_disk_and_none_is_lost(small_model, answers, tmp_path, full_disk, caplog):
    path = tmp_path / "log"
    sink = LogSink(path, Engine(small_model, "eager"))
    full_disk[0] = True
    sink.swap(Engine(small_model, "eager"))
    for answer in answers:
        sink.deliver(answer)
    assert sink.fault() == (
        f"{path}: the log of verdicts cannot be written (No space left on device); 4 records wait in memory"
    )
    caplog.set_level(logging.INFO)
    assert eventually(lambda: f"{path}: the log of verdicts cannot be written" in caplog.text)
    full_disk[0] = False
    assert eventually(lambda: sink.fault() == "")  # without another answer
    assert eventually(lambda: f"{path}: the log of verdicts is written again" in caplog.text)
    sink.close()
    assert [record.get("id", "model") for record in records(path)] == ["model", "model", 0, 1, 2]


def test_what_finds_no_room_is_counted_and_the_log_says_how_many(
    small_model, answers, tmp_path, full_disk, monkeypatch
):
    monkeypatch.setattr(log_sink, "ROOM", 2)
    monkeypatch.setattr(log_sink, "SYNC_INTERVAL", 1000.0)
    sink = LogSink(tmp_path / "log", Engine(small_model, "eager"))
    full_disk[0] = True
    for answer in answers:
        sink.deliver(answer)
    assert "2 records wait in memory and 1 are lost" in sink.fault()
    full_disk[0] = False
    sink.deliver(answers[0])
    assert sink.fault() == ""
    sink.close()
    assert [record.get("id", record.get("answers")) for record in records(tmp_path / "log")[1:]] == [0, 1, 1, 0]
    assert verify(tmp_path / "log").lost == 1


def test_a_disk_that_fails_to_sync_stays_a_fault(small_model, answers, tmp_path, monkeypatch):
    def failing(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log_sink, "SYNC_INTERVAL", 0.01)
    sink = LogSink(tmp_path / "log", Engine(small_model, "eager"))
    with monkeypatch.context() as broken:
        broken.setattr(verdict_log.os, "fsync", failing)
        assert eventually(lambda: "Input/output error" in sink.fault())
    sink.deliver(answers[0])
    assert "Input/output error" in sink.fault()
    sink.close()


def test_a_disk_that_hangs_holds_up_no_close(small_model, tmp_path, monkeypatch):
    free = threading.Event()
    sink = LogSink(tmp_path / "log", Engine(small_model, "eager"))
    with monkeypatch.context() as hanging:
        hanging.setattr(verdict_log.os, "fsync", lambda descriptor: free.wait(60))
        sink.close(0.05)
        assert "has not taken the log of verdicts within 0.05 s" in sink.fault()
        free.set()
        assert eventually(lambda: not sink._thread.is_alive())


def test_a_disk_that_hangs_in_a_write_is_a_fault(small_model, answers, tmp_path, monkeypatch):
    free, write = threading.Event(), os.write
    monkeypatch.setattr(log_sink, "SYNC_INTERVAL", 0.05)
    sink = LogSink(tmp_path / "log", Engine(small_model, "eager"))
    monkeypatch.setattr(verdict_log.os, "write", lambda *given: free.wait(60) and write(*given))
    thread = threading.Thread(target=sink.deliver, args=(answers[0],))
    thread.start()
    assert eventually(lambda: "the disk has not taken an answer for 0 s" in sink.fault())
    free.set()
    thread.join(60)
    assert sink.fault() == ""
    sink.close()
    assert len(records(tmp_path / "log")) == 2


def test_a_log_that_cannot_be_begun_is_refused_and_let_go(small_model, tmp_path, full_disk):
    engine = Engine(small_model, "eager")
    full_disk[0] = True
    with pytest.raises(InputError, match="No space left"):
        LogSink(tmp_path / "log", engine)
    full_disk[0] = False
    LogSink(tmp_path / "log", engine).close()
    assert records(tmp_path / "log")[0]["threshold"] == threshold.manual(0.023).summary()
