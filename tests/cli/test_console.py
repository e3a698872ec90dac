"""What the command line prints, and the durations that it reads."""

import pytest
from rich.table import Column, Table

from sprfast.cli import console
from sprfast.errors import InputError

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
