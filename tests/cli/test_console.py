"""What the command line prints, and the durations that it reads."""

import io
import logging
import os
import threading
import time

import pytest
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.errors import InputError
from sprfast.system.terminal import Terminal
from support.line_cases import eventually

DURATIONS = [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("1.5h", 5400), (" 2D ", 172800)]


@pytest.mark.parametrize(("text", "expected"), DURATIONS)
def test_durations(text, expected):
    assert console.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "20", "m", "5x", "-3s", "0s", "1.2.3s", "1m x"])
def test_bad_durations(text):
    with pytest.raises(InputError, match="duration"):
        console.seconds(text)


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("name", Column("value", no_wrap=True))
    table.add_row("long", "x" * 150)
    console.emit({}, False, lambda: table)
    assert "x" * 150 in capsys.readouterr().out


def test_names_are_printed_as_they_are(capsys):
    console.emit({"[red]": "sprfast[onnx]", ":100:": ["lot["]}, False)
    console.say("lot[ :100: [/x]")
    captured = capsys.readouterr()
    assert [line.split() for line in captured.out.splitlines()] == [["[red]", "sprfast[onnx]"], [":100:", "['lot[']"]]
    assert captured.err == "lot[ :100: [/x]\n"


def test_a_bar_takes_no_name_for_markup(monkeypatch):
    shown = Terminal(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "log", shown)
    with console.counter("evaluating [/lot] :100:") as update:
        update(1, 2, "lot[\x1b")
    with console.training_bar("training [/lot]") as _:
        pass
    text = shown.file.getvalue()
    assert "evaluating [/lot] :100:" in text
    assert "lot[\\x1b" in text
    assert "training [/lot]" in text


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_that_cannot_be_written_is_an_input_error(monkeypatch, as_json):
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "w", buffering=1 << 20) as stream:  # a descriptor that only reads: EBADF
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(InputError, match=r"standard output: cannot be written \(Bad file descriptor\)"):
            console.emit({"value": 1}, as_json)


def test_without_a_reader_of_what_is_said_the_work_goes_on(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        told = Terminal(stderr=True)
        for _ in range(2):
            told.print("training")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)


@pytest.fixture
def told(monkeypatch):
    """What is said where there is no terminal, with the first line at once and the others soon."""
    stream = io.StringIO()
    monkeypatch.setattr(console, "log", Terminal(file=stream, width=100))
    monkeypatch.setattr(console, "FIRST", 0.0)
    monkeypatch.setattr(console, "EVERY", 0.01)
    return stream


def said(stream, text):
    return eventually(lambda: text in stream.getvalue())


def test_without_a_terminal_progress_is_a_line_now_and_then(told):
    with console.going_on("predict"):
        assert said(told, "predict: 0 s\n")
        with console.counter("predicting [/lot]") as update:
            assert said(told, "predicting [/lot]: 0 s\n")
            update(1, 4)
            assert said(told, "predicting [/lot]: 25%  1/4\n")
            update(2, 4, "saving")
            assert said(told, "saving: 50%  2/4  0 s left\n")
        told.truncate(told.seek(0))
        assert said(told, "predict: 0 s\n")
        console.emit({"verdict": "PASS"}, True)
        told.truncate(told.seek(0))
    assert told.getvalue() == ""
    assert not any(thread.name == "sprfast-progress" for thread in threading.enumerate())


def test_the_first_line_comes_after_3_seconds_and_then_every_10():
    assert (console.FIRST, console.EVERY) == (3.0, 10.0)


def test_quiet_says_errors_only(told, capsys):
    with console.told(True, 0), console.going_on("predict"):
        time.sleep(0.05)
        console.note("report: a.json")
        console.say("sprfast: a.png: cannot be read")
    assert told.getvalue() == "sprfast: a.png: cannot be read\n"


@pytest.mark.parametrize(("verbose", "levels"), [(0, []), (1, ["INFO"]), (2, ["INFO", "DEBUG"])])
def test_verbose_says_what_is_logged(told, verbose, levels):
    logger = logging.getLogger("sprfast.line")
    for outside in (False, True):
        with console.told(False, 0 if outside else verbose):
            logger.info("model [red] serves")
            logger.debug("a detail")
    lines = told.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == levels
    assert all("sprfast.line: " in line for line in lines)


DURATIONS_SAID = [(3.4, "3 s"), (90, "1.5 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min"), (86400 - 1, "1 d 0 h")]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS_SAID)
def test_durations_are_said_for_a_person(seconds, text):
    assert console.duration(seconds) == text


def test_a_fork_in_the_midst_of_a_line_can_say_something(told):
    """As it would wait for the thread that says it, which a fork has not."""
    with console.going_on("train"):
        for _ in range(50):
            child = os.fork()
            if not child:
                console.say("child")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
