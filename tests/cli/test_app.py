"""What every command has in common: one-line errors and exit codes."""

import pytest

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
