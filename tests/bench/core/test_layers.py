"""`sprfast bench layers`: what the time of backend cpu is spent on."""

import ctypes
import json
import math

import numpy as np
import pytest

from sprfast.backends.sessions.cpu import CpuSession
from sprfast.bench.core import hardware, layers
from sprfast.config import Level, Schedule
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library
from sprfast.method import unet
from support.scoring_mode_cases import with_mode

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


@pytest.fixture
def model(small_model):
    """Three draws on two levels."""
    return with_mode(small_model, schedule=Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0))))


@needs_library
def test_every_convolution_counts_once_and_the_rest_of_the_time_is_told(model):
    report = layers.measure(model, 32, 5, 0.01)  # three passes
    convolutions, (head, anomaly_map) = report["rows"][:-2], report["rows"][-2:]
    shapes = unet.parameter_shapes(model.network)
    kernels = [shape[:2] for shape in shapes.values() if tuple(shape[2:]) == (3, 3)]
    assert sorted((row["channels_out"], row["channels_in"]) for row in convolutions) == sorted(kernels)
    assert (head["name"], anomaly_map["name"], anomaly_map["gflop"]) == ("head", "anomaly map", None)
    flops = 5 * 3 * hardware.flops(model.network, 32, 32)  # with those of the time embedding
    assert report["total"]["gflop"] == pytest.approx(1e-9 * flops, rel=1e-4)
    assert all(0 < row["ms"] < report["call_ms"] for row in report["rows"])
    assert 0 < report["total"]["percent"] <= 100
    assert report["calls"] >= layers.CALLS
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.usefixtures("bfloat16_on_any_processor")
def test_a_layer_in_bfloat16_has_the_error_of_its_rounding(model):
    report = layers.measure(model, 32, 1, 0.01, "bfloat16")
    assert (report["precision"], report["instruction_set"]) == ("bfloat16", library.available("bfloat16")[0])
    first, *rounded = [row["relative_rms"] for row in report["rows"][:-2]]
    assert first < 1e-6
    assert all(1e-4 < error < 1e-2 for error in rounded)


def change(monkeypatch, layer_changed):
    """Change every layer before the observer sees it."""
    right = CpuSession.maps

    def maps(self, x, z, observe=None):
        def changed(layer):
            layer_changed(layer)
            observe(layer)

        return right(self, x, z, observe and changed)

    monkeypatch.setattr(CpuSession, "maps", maps)


@needs_library
def test_times_of_all_passes_are_added(model, monkeypatch):
    change(monkeypatch, lambda layer: setattr(layer, "seconds", 1.0))
    report = layers.measure(model, 16, 5, 0.01)
    assert {row["ms"] for row in report["rows"]} == {3e3}  # a second each in three passes of two images
    assert report["total"]["ms"] == 20 * 3e3


@needs_library
def test_errors_are_those_of_a_layer_alone_and_of_all_before_it(model, monkeypatch):
    def wrong(layer):
        if layer.name in (b"down3.first", b"down4.first"):
            count = 3 * layer.height * layer.width * layer.channels_out
            raw = np.ctypeslib.as_array((ctypes.c_float * count).from_address(layer.output))
            raw *= 1.01

    def measured(key):
        return {row["name"]: row[key] for row in layers.measure(model, 32, 1, 0.01)["rows"]}

    alone, so_far = measured("relative_rms"), measured("accumulated_rms")
    convolutions = list(alone)[:-2]
    assert all(0 < error < 1e-5 for error in alone.values()), alone
    assert [name for name, error in so_far.items() if error is not None] == convolutions
    assert all(alone[name] / 2 < so_far[name] < 1e-5 for name in convolutions), so_far
    change(monkeypatch, wrong)
    alone, so_far = measured("relative_rms"), measured("accumulated_rms")
    assert {name for name, error in alone.items() if error > 1e-5} == {"down3.first", "down4.first"}
    assert math.isclose(alone["down3.first"], 0.01, rel_tol=1e-3)
    assert [name for name in convolutions if so_far[name] > 1e-5] == convolutions[convolutions.index("down3.first") :]


@needs_library
def test_the_table_fits_a_terminal(run, model_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("bench", "layers", model_path, "--seconds", "0.01")
    assert code == 0
    assert "32x32, 2 draws, 1 image a call" in out
    assert "…" not in out
    names = [line.split()[0] for line in out.splitlines() if line.strip()]
    blocks = ("inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4")
    rows = [f"{block}.{place}" for block in blocks for place in ("first", "second")] + ["head", "anomaly", "total"]
    assert [name for name in names if name in rows] == rows
    code, out, _ = run("bench", "layers", model_path, "--seconds", "0.01", "--size", "16", "--batch", "2", "--json")
    assert json.loads(out)["input"] == {"images": 2, "draws": 2, "height": 16, "width": 16}


@pytest.mark.parametrize(("option", "value"), [("--size", "8"), ("--batch", "0"), ("--seconds", "0")])
def test_bad_input_is_one_line(run, model_path, option, value):
    code, out, err = run("bench", "layers", model_path, option, value)
    assert (code, out) == (2, "")
    assert err.startswith(f"sprfast: {option.removeprefix('--')}: {value}")


def test_without_the_kernels_it_says_why(run, model, model_path, without_cpu_kernels):
    with pytest.raises(BackendError) as raised:
        layers.measure(model, 32, 1, 0.01)
    assert str(raised.value) == f"backend cpu: {without_cpu_kernels}"
    code, out, err = run("bench", "layers", model_path)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
