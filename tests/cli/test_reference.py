"""The reference of the command line: the page in docs is what the commands say of themselves."""

from sprfast.cli import reference
from support import ROOT


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "command-line.md").read_text("utf-8") == reference.document(), "run `make docs`"


def test_the_width_of_the_terminal_changes_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERMINAL_WIDTH", "40")
    narrow = reference.document()
    monkeypatch.setenv("COLUMNS", "300")
    assert narrow == reference.document()


def test_every_command_has_help_its_options_and_an_example():
    sections = dict(part.split("\n", 1) for part in reference.document().split("\n## ")[1:])
    assert {"sprfast", "sprfast train", "sprfast import", "sprfast bench layers", "sprfast study show"} <= set(sections)
    assert "| `--size-policy POLICY` | fit: shorter side to --size; stretch: a square;" in sections["sprfast train"]
    assert "[default: fit] |" in sections["sprfast train"]
    groups = ("sprfast", "sprfast bench", "sprfast study", "sprfast log")
    for name, text in sections.items():
        assert text.strip().splitlines()[0], name
        assert ("Example:\n" in text) == (name not in groups), name
    for line in reference.document().splitlines():
        assert len(line) <= 100 or line.startswith(("|", "sprfast ")), line
