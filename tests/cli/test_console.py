"""What the command line prints, and the durations that it reads."""

import io
import os

import pytest
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.errors import InputError
from sprfast.system.terminal import Terminal

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
