"""The commands `info` and `doctor`."""

import json

from sprfast.backends import registry as backends


def test_info_and_doctor_print_json(run, model_path, small_model):
    assert json.loads(run("info", model_path, "--json")[1])["sha256"] == small_model.sha256
    reasons = {name: backends.unavailable(name) or "can run" for name in backends.NAMES}
    assert json.loads(run("doctor", "--json")[1])["backends"] == reasons
    assert "can run" in run("doctor")[1]
