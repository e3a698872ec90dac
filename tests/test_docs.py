"""README and docs: links lead somewhere, commands and modules that they name exist."""

import re
import shlex

import pytest
import typer

from sprfast.cli import app
from support import ROOT, rooms

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```.*?^```", re.S | re.M)
TEXTS = {path: path.read_text("utf-8") for path in PAGES}


def anchors(text):
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", TEXTS[path])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text("utf-8")), target


def test_the_readme_is_a_door():
    assert TEXTS[ROOT / "README.md"].count("\n") <= 200


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_of_other_languages_is_that_of_an_example(path):
    """Which tests/process/test_embedding.py builds."""
    examples = [example.read_text("utf-8") for example in (ROOT / "examples").glob("*/*")]
    for block in re.findall(r"^```(?:c|cpp|cmake|csharp)\n(.*?)^```", TEXTS[path], re.S | re.M):
        assert any(block in example for example in examples), block


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "command-line.md"], ids=lambda path: path.name)
def test_prose_is_wrapped_at_100_columns(path):
    prose = [line for line in FENCED.sub("", TEXTS[path]).splitlines() if not line.startswith(("|", "    ", "!["))]
    assert not [line for line in prose if len(line) > 100 and " " in line.strip()]


def commands():
    """Commands of sprfast in fenced lines and in code within prose, with the page."""
    for path, text in TEXTS.items():
        if path.name == "CHANGELOG.md":  # which names what is gone
            continue
        lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
        for line in lines:
            if match := re.match(r"\s*(?:\S*torchrun .*-m )?sprfast (?!.*COMMAND\b)(\w[^#|]*)", line):
                yield path.name, match[1].strip()


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_that_is_printed_has_these_options(page, line):
    command = typer.main.get_command(app.app)
    words = shlex.split(line.replace("<", "'<").replace(">", ">'"))
    while words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
        words = words or [""]
    if "run" in getattr(command, "commands", {}):  # `sprfast bench MODEL` stands for `sprfast bench run MODEL`
        assert not words[0].islower() or "." in words[0] or line.startswith("study "), f"{page}: no command {words[0]}"
        command = command.commands["run"]
    assert words == [""] or not hasattr(command, "commands"), f"{page}: no command {words[0]}"
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert not {word for word in words if re.match(r"--?[a-z]", word)} - known - {"--help"}, page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_and_files_that_are_named_exist(path):
    if path.name == "CHANGELOG.md":  # which names what is gone
        return
    known = rooms.modules()
    for name in re.findall(r"sprfast((?:\.[a-z_]+)+)(?=[`:\s])", TEXTS[path]):
        parts = name.strip(".").split(".")
        module = next(
            (".".join(parts[:end]) for end in (len(parts), len(parts) - 1) if ".".join(parts[:end]) in known), ""
        )
        assert module or parts[0] in ("load", "h", "hpp"), name
    for name in re.findall(r"`((?:sprfast|kernels|bench|tests|examples|docs)/[\w/.*-]+)`", TEXTS[path]):
        assert list(ROOT.glob(name.rstrip("/"))), name
