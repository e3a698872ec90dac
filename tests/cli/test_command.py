"""What every command has: its options in a file, completion, and help as wide as the terminal."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import typer

from sprfast.cli import app
from sprfast.cli.command import COMMON
from support import ROOT
from support.command_line import one_line


@pytest.fixture
def configured(run, model_path, tmp_path):
    """Run `info` or another command with this text as its --config."""
    file = tmp_path / "plant.toml"

    def call(text, *arguments):
        file.write_text(text)
        return run, *(arguments or ("info", model_path)), "--config", file

    return call


def test_options_come_from_a_file_and_the_command_line_goes_before(configured, model_path, pictures, tmp_path):
    text = f"""
[predict]
json = true
output = "{tmp_path / "out"}"
backend = "eager"
[train]
level = ["0.001:3", "0.002:1"]
hold-back = 0
[bench.run]
period = "100ms"
"""
    run, *arguments = configured(text, "predict", model_path, pictures[0])
    code, out, _ = run(*arguments)
    assert code == 0
    assert json.loads(out)["results"][0]["backend"] == "eager"
    assert (tmp_path / "out" / "results.jsonl").exists()
    run(*arguments, "-o", tmp_path / "other")
    assert (tmp_path / "other" / "results.jsonl").exists()


def test_options_of_a_command_in_a_group_come_from_its_own_table(configured, tmp_path):
    text = f"[log.verify]\njson = true\nhead = '{'0' * 64}'\n"
    log = tmp_path / "log"
    log.write_bytes(b"")
    run, *arguments = configured(text, "log", "verify", log)
    code, out, err = run(*arguments)
    assert (code, json.loads(out)["records"]) == (1, 0)
    assert "no record has the hash 000" in err


def test_a_required_option_may_stand_in_the_file(configured, tmp_path):
    run, *arguments = configured("[report]\nshift = 'nowhere'\noutput = 'page.html'\n", "report")
    assert "nowhere: no such log" in one_line(run, *arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[predict]\nbackend = 3", "[predict] backend: 3 is not allowed, expected a text in quotes"),
        ("[predict]\nresume = 'yes'", "[predict] resume: 'yes' is not allowed, expected true or false"),
        ("[train]\nsize = 64.0", "[train] size: 64.0 is not allowed, expected an integer"),
        ("[train]\nsize = true", "[train] size: True is not allowed, expected an integer"),
        ("[train]\nhold-back = 'a'", "[train] hold-back: 'a' is not allowed, expected a number"),
        ("[train]\nlevel = '0.1:3'", "[train] level: '0.1:3' is not allowed, expected a list, each a text in quotes"),
        ("[train]\nlevel = [1]", "[train] level: [1] is not allowed, expected a list, each a text in quotes"),
        ("[predict]\nbackand = 'cpu'", "[predict] backand: there is no such option; did you mean backend?"),
        ("[predict]\nmodel = 'a'", "[predict] model: there is no such option"),
        ("[predict]\nconfig = 'a'", "[predict] config: there is no such option"),
        ("[predcit]\nbackend = 'cpu'", "[predcit]: there is no such command; did you mean predict?"),
        ("[bench.rum]\nbatch = 1", "[bench.rum]: there is no such command; did you mean run?"),
        ("[bench]\nbatch = 1", "batch: stands in no command's table; write it under one such as [bench.run]"),
        ("backend = 'cpu'", "backend: stands in no command's table; write it under one such as [train]"),
        ("[predict", "is no TOML (Expected ']'"),
    ],
)
def test_what_is_no_option_is_named_with_its_file_and_place(configured, text, says, tmp_path):
    said = one_line(*configured(text))
    assert said.startswith(f"sprfast: {tmp_path / 'plant.toml'}: ")
    assert says in said


def test_a_file_that_cannot_be_read_is_one_sentence(run, model_path, tmp_path):
    assert "nowhere: cannot be read (No such file" in one_line(
        run, "info", model_path, "--config", tmp_path / "nowhere"
    )
    (tmp_path / "latin").write_bytes(b"[predict]\nbackend = '\xfc'")
    assert "latin: is no TOML (" in one_line(run, "info", model_path, "--config", tmp_path / "latin")


def commands(command):
    for each in getattr(command, "commands", {}).values():
        yield from commands(each)
    if not hasattr(command, "commands"):
        yield command


def test_every_command_has_the_common_options_and_readable_values():
    found = list(commands(typer.main.get_command(app.app)))
    assert len(found) > 15
    for command in found:
        assert {*COMMON} <= {each.name for each in command.params}
        for each in command.params:
            is_flag = getattr(each, "is_flag", False) or getattr(each, "count", False)
            assert is_flag or re.fullmatch(r"\[?[A-Z][\w:\[\]./ ]*", each.metavar), (command.name, each.name)


def test_quiet_leaves_out_notes_and_no_error(run, tmp_path):
    from sprfast.formats.verdict_log import VerdictLog, answer

    with VerdictLog(tmp_path / "log") as log:
        log.add(answer(1, "PASS", 0.1, 0.2, None, "a1"))
    command = ("report", "--shift", tmp_path / "log", "-o", tmp_path / "page.html", "-q")
    assert run(*command) == (0, "", "")
    assert "no such log" in one_line(run, "report", "--shift", tmp_path / "nowhere", "-o", tmp_path / "page.html", "-q")


@pytest.mark.parametrize(("columns", "widest"), [("60", 60), ("100", 100), ("150", 150)])
def test_help_is_as_wide_as_the_terminal(run, monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["--help"], ["train", "--help"], ["bench", "run", "--help"]):
        _, out, _ = run(*arguments)
        width = max(len(line) for line in out.splitlines() if not line.strip().startswith("Example"))
        assert width <= widest
        assert width > widest - 30 or arguments == ["--help"]
    assert "Usage: sprfast bench run [OPTIONS] MODEL" in out


@pytest.mark.parametrize(
    ("words", "completed"),
    [("sprfast pre", "predict"), ("sprfast predict --dev", "--device"), ("sprfast log v", "verify")],
)
def test_the_shell_completes_commands_and_options(run, monkeypatch, words, completed):
    monkeypatch.setenv("_SPRFAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert run() == (0, f"{completed}\n", "")


@pytest.mark.clock
@pytest.mark.parametrize("arguments", [["--help"], ["predict", "MODEL", "PICTURE"]])
def test_something_is_said_within_a_second(arguments, model_path, pictures):
    """On a terminal; Python's own start is in it."""
    words = [{"MODEL": str(model_path), "PICTURE": str(pictures[0])}.get(word, word) for word in arguments]
    ours, theirs = os.openpty()
    best = 60.0
    for _ in range(3):
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "sprfast", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.read(ours, 1)
            best = min(best, time.monotonic() - started)
            process.kill()
    assert best < 1.0
