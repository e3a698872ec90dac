"""`sprfast bench settings`: what each setting of a model costs, all in turns and in one run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sprfast.backends import registry
from sprfast.bench.core import named_settings
from sprfast.engine.engine import Engine
from sprfast.engine.predictor import Predictor
from sprfast.errors import BackendError, InputError
from sprfast.evaluation import calibration
from sprfast.formats import model as model_file
from sprfast.method.scoring_mode import ScoringMode
from support.bench_reports import printed
from support.scoring_mode_cases import with_settings

CPU = torch.device("cpu")
BACKEND = registry.choose("auto", CPU)


@pytest.fixture(scope="module")
def model(small_model):
    given = with_settings(small_model)
    named = {name: ScoringMode(setting.schedule) for name, setting in calibration.SETTINGS.items()}
    return dataclasses.replace(given, scoring_modes={**given.scoring_modes, **named})


@pytest.fixture(scope="module")
def names(model):
    return ["published", *sorted(model.scoring_modes)]  # as a file has them


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "model.safetensors"
    model_file.save(path, model)
    return path


@pytest.fixture(scope="module")
def report(path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(named_settings, "MAX_BATCH", 2)
        patched.setattr(named_settings, "ROUNDS", 2)
        return named_settings.measure(model_file.load(path), BACKEND, torch.device("cpu"), 1e-3)


def test_every_setting_has_passes_times_and_the_error_of_its_self_test(report, model, names):
    assert list(report["settings"]) == names
    assert len(names) == 2 + len(calibration.SETTINGS)
    for found in report["settings"].values():
        assert 0.0 < found["error"] < 1e-4
        for key in ("ms", "images_per_s", "speedup"):
            assert 0.0 < found[key]["min"] <= found[key]["median"] <= found[key]["max"]
    assert report["input"] == {"height": 32, "width": 32, "images": "uniform random in [-1, 1]"}
    assert (report["model"], report["backend"], report["threads"]) == (model.sha256, BACKEND, torch.get_num_threads())
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_passes_are_those_of_the_schedule(report, model):
    found = {name: each["passes"] for name, each in report["settings"].items()}
    first = found["published"]
    assert first == model.schedule.draws == 2
    for name, setting in model.scoring_modes.items():
        assert found[name] == setting.schedule.draws


def test_the_published_setting_is_once_as_fast_as_itself(report):
    assert report["settings"]["published"]["speedup"] == {"median": 1.0, "min": 1.0, "max": 1.0}


def test_a_speedup_is_of_batches_within_the_rounds(monkeypatch):
    """Predictors that wait for known times, the slower one for the base."""
    clock = [0.0]

    class Waiting(Predictor):
        model_sha256 = _probe = None

        def __init__(self, seconds):
            self.seconds = seconds

        def self_test(self):
            return 0.0

        def score(self, prepared):
            clock[0] += self.seconds * len(prepared)
            return [type("Scored", (), {"passes": 1 if index else 3})() for index in range(len(prepared))]

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    inputs = np.zeros((4, 3, 16, 16), np.float32)
    found = named_settings.times({"slow": Waiting(0.5), "fast": Waiting(0.125)}, inputs, CPU, 1e-3, "slow")
    assert {name: each["ms"]["median"] for name, each in found.items()} == {"slow": 500.0, "fast": 125.0}
    assert {name: each["images_per_s"]["median"] for name, each in found.items()} == {"slow": 2.0, "fast": 8.0}
    assert {name: each["speedup"]["median"] for name, each in found.items()} == {"slow": 1.0, "fast": 4.0}
    assert {each["passes"] for each in found.values()} == {1.5}


def test_a_setting_that_computes_wrong_maps_is_refused(model, monkeypatch, names):
    def wrong(given, backend, device):
        engine = Engine(given, backend, device)
        if given.schedule == model.scoring_modes[names[1]].schedule:
            maps = engine._session.maps
            engine._session.maps = lambda x, z: tuple(1.01 * each for each in maps(x, z))
        return engine

    monkeypatch.setattr(named_settings, "Engine", wrong)
    with pytest.raises(BackendError, match="the error map of the probe image is off by"):
        named_settings.measure(model, BACKEND, CPU, 1e-3)


def test_the_table_fits_80_columns_with_nothing_cut_off(report, names):
    wide = {"median": 1234.5, "min": 1000.0, "max": 2000.0}
    ratio = {"median": 12.34, "min": 10.01, "max": 20.02}
    row = {"passes": 3.25, "ms": wide, "images_per_s": wide, "speedup": ratio, "error": 1e-7}
    for document in (report, report | {"settings": {"published": row, "[/odd]": row}}):
        text = printed(named_settings.table(document))
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        for name in document["settings"]:
            assert any(line.split()[:1] == [name] for line in text.splitlines()), name
    assert "12.34 (10.01-20.02)" in text
    assert "1.0e-07" in text


def test_the_command_prints_what_is_measured_as_a_table_or_as_json(run, path, report, model, monkeypatch):
    def measured(given, backend, device, seconds):
        assert (given.sha256, backend, device, seconds) == (model.sha256, "eager", CPU, 0.25)
        return report

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(named_settings, "measure", measured)
    arguments = ("bench", "settings", path, "--seconds", "0.25", "--device", "cpu", "--backend", "eager")
    code, out, _ = run(*arguments)
    assert (code, out.rstrip()) == (0, printed(named_settings.table(report)).rstrip())
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)) == (0, report)


def test_a_model_without_settings_is_refused_with_advice(run, model_path):
    code, out, err = run("bench", "settings", model_path)
    assert (code, out) == (2, "")
    assert (
        err.strip()
        == f"sprfast: {model_path}: holds no setting beside the published one; `sprfast calibrate --setting` adds one"
    )


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_that_cannot_be_is_one_line(run, path, seconds):
    code, out, err = run("bench", "settings", path, "--seconds", seconds)
    assert (code, out) == (2, "")
    assert err.startswith(f"sprfast: --seconds {float(seconds)}: expected a positive number of at most a day")


def test_a_backend_that_is_not_known_is_an_input_error(model):
    with pytest.raises(InputError, match="abacus"):
        named_settings.measure(model, "abacus", CPU, 1e-3)
