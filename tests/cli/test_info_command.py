"""The commands `info` and `doctor`."""

import dataclasses
import json

from sprfast.backends import registry as backends
from sprfast.formats import model as model_file


def test_info_and_doctor_print_json(run, model_path, small_model):
    assert json.loads(run("info", model_path, "--json")[1])["sha256"] == small_model.sha256
    reasons = {name: backends.unavailable(name) or "can run" for name in backends.NAMES}
    assert json.loads(run("doctor", "--json")[1])["backends"] == reasons
    assert "can run" in run("doctor")[1]


def test_a_size_whose_maps_skip_pixels_has_a_warning(run, small_model, tmp_path):
    preprocessing = dataclasses.replace(small_model.preprocessing, size=768)
    model_file.save(tmp_path / "large", dataclasses.replace(small_model, preprocessing=preprocessing))
    code, out, _ = run("info", tmp_path / "large", "--json")
    assert code == 0
    assert "above 512 a side the anomaly map skips pixels, here 89% of them" in json.loads(out)["warning"]
    model_file.save(tmp_path / "small", small_model)
    assert "warning" not in json.loads(run("info", tmp_path / "small", "--json")[1])
