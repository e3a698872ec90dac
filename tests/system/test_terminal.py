"""Text is shown as it is, wherever it meets a table."""

import io
import re

import pytest
from rich.console import Group
from rich.table import Column, Table

from sprfast.system.terminal import Terminal, shown
from support import ROOT

NAMES = ["[red]lot", "lot[", "[/lot]", ":100:", "pip install 'sprfast[onnx]'", "[link=x]lot", r"\[lot", "批次", "$lot$"]


def printed(*renderables, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    Terminal(file=stream, width=60).print(*renderables)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def table(name):
    made = Table(Column(name, overflow="fold"), title=name, caption=name)
    made.add_row(name)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_markup_or_an_emoji(name):
    assert printed(table(name)).count(name) == 4
    assert printed(Group(name, table("other")), name).count(name) == 2


def test_what_would_not_be_seen_is_an_escape():
    assert shown("a\x1b[2Jb\tc\nd") == "a\\x1b[2Jb\\tc\nd"
    assert shown(b"lot-\xff".decode("utf-8", "surrogateescape")) == r"lot-\xff"
    assert shown("批 é", "latin-1") == r"\u6279 é"
    assert shown("\ud800") == r"\ud800"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_table_is_printed_in_any_encoding_and_stays_in_line(encoding):
    text = printed(table("批次\udcff"), encoding=encoding)
    assert r"\xff" in text
    if encoding != "utf-8":
        assert r"\u6279\u6b21\xff" in text
        assert len({len(line) for line in text.splitlines()[1:-1]}) == 1


def test_no_other_console_is_made():
    """What is printed through another one would be markup."""
    sources = [*(ROOT / "sprfast").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    assert [path for path in sources if re.search(r"\bConsole\(|rich import print", path.read_text("utf-8"))] == []
