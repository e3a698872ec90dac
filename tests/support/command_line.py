"""Commands of the command line, in processes of their own."""

import os
import subprocess
import sys

from support import ROOT

TRAIN = ["--size", "16", "--width", "32", "--steps", "2", "--batch-size", "2", "--workers", "0"]


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
