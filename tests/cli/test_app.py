"""What every command has in common: one-line errors and exit codes."""

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from sprfast.cli import app as cli
from sprfast.errors import SprfastWarning
from support import ROOT
from support.command_line import run_sprfast


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["evaluate", "nowhere.safetensors", "data"], "nowhere.safetensors"),
        (["train", "nowhere"], "nowhere"),
        (["train", "nowhere", "--time-limit", "soon"], "soon"),
        (["train", "nowhere", "--steps", "3", "--epochs", "3"], "steps"),
        (["train", "nowhere", "--width", "48"], "base_width"),
        (["train", "nowhere", "--size-policy", "crop"], "size_policy"),
        (["train", "nowhere", "--alpha", "odd"], "alpha"),
        (["train", "nowhere", "--orientation", "odd"], "orientation"),
        (["train", "nowhere", "--frames", "odd"], "frames"),
        (["train", "nowhere", "--level", "2:3"], "t"),
        (["train", "nowhere", "--level", "0.1"], "--level"),
        (["parity", "--golden", "nowhere"], "nowhere"),
        (["parity"], "--golden"),
        (["calibrate", "model.safetensors"], "GOOD_DIR"),
    ],
)
def test_bad_input_is_one_line_that_names_it(run, arguments, names):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("sprfast: ")
    assert names in err
    assert len(err.strip().splitlines()) == 1


def test_a_bare_checkout_runs_uninstalled(tmp_path):
    done = run_sprfast(["--version"], {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert done.stdout.strip().count(".") == 2


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["predict", "--help"], [], ["--json"]])
def test_a_reader_that_is_gone_is_exit_141(monkeypatch, capfd, model_path, arguments):
    if arguments in ([], ["--json"]):
        arguments = ["info", str(model_path), *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # typer puts a stream of its own there
        monkeypatch.setattr(sys, "argv", ["sprfast", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 141
    assert capfd.readouterr().err == ""


def test_every_command_prints_its_answer_through_the_console():
    """So what holds for one command holds for all, with a reader that is gone or a full disk.

    A station has no answer at its end: it prints rejects as they come.
    """
    for path in (ROOT / "sprfast" / "cli").rglob("*.py"):
        if path.name not in ("console.py", "app.py", "reference.py", "station.py"):
            source = path.read_text("utf-8")
            assert not any(word in source for word in ("sys.stdout", "print(", "echo(")), path


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--version"], ["info", "nowhere.safetensors", "--json"]])
def test_a_closed_stdout_is_refused_before_any_work(arguments):
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-m", "sprfast", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "sprfast: standard output is closed; send it to /dev/null where nobody is to read it\n"


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = "import os; from sprfast.cli import app; app._open_streams(); print(os.open('x', os.O_CREAT | os.O_WRONLY))"
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- 2>&-', "bash", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert int(done.stdout) > 2


def test_a_warning_of_ours_is_one_line_and_others_have_their_place(monkeypatch, run):
    def command(**_):
        warnings.warn("left out: a.pgm", SprfastWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        sys.exit(0)

    others = []
    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setattr(cli, "_show_any_warning", lambda *given: others.append(given))
    assert run()[2] == "sprfast: left out: a.pgm\n"
    assert [(str(message), os.path.basename(place)) for message, _, place, *_ in others] == [("old", "test_app.py")]


@pytest.mark.process
def test_ctrl_c_at_any_early_moment_ends_without_a_traceback(tmp_path):
    """From the first line of ours on; before that Python itself is starting."""
    started = tmp_path / "started"
    code = f"import sprfast.__main__ as m; open({str(started)!r}, 'w').close(); m.main()"
    for delay in (0.0, 0.05, 0.1, 0.2, 0.3):
        started.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code, "info", "nowhere.safetensors"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not started.exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        # 2: it had said already that there is no such file; -SIGINT: and Python was at its end
        assert process.returncode in (130, 2, -signal.SIGINT)
        assert "Traceback" not in err
