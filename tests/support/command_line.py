"""Commands of the command line, in processes of their own."""

import os
import re
import shlex
import subprocess
import sys

from support import ROOT

TRAIN = ["--size", "16", "--width", "32", "--steps", "2", "--batch-size", "2", "--workers", "0"]


PROGRESS = re.compile(r"[\w -]+: (\d+%  )?(\d+/\d+( .*)?|step \d+ .*|\d+ (s|min|h|d)\b.*)")


def without_progress(err):
    """The lines of an error output but those of progress, which a slow machine prints where a quick
    one prints none.
    """
    return [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]


def run_sprfast(arguments, environment, prefix=""):
    """`sprfast` in a process of its own, after the shell commands `prefix`."""
    command = [sys.executable, "-m", "sprfast", *map(str, arguments)]
    whole = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    shell = ["bash", "-c", prefix + 'exec "$@"', "bash", *command]
    return subprocess.run(shell, env=whole, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def one_line(run, *arguments, code=2):
    """The error of a command that must fail in one sentence; `run` is the fixture."""
    got, out, err = run(*arguments)
    assert (got, out) == (code, ""), arguments
    assert err.startswith("sprfast: ")
    assert err.count("\n") == 1
    return err


def next_command(err):
    """The arguments of the one that a command says to be the next."""
    (line,) = [line for line in err.splitlines() if line.startswith("next: sprfast ")]
    return shlex.split(line.removeprefix("next: sprfast "))
