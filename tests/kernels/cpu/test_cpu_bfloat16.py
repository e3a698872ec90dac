"""The convolution of the CPU kernels in bfloat16, for each instruction set that runs here, against
its reference in float64 with inputs and weights rounded.
"""

import ctypes
import dataclasses
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprfast.kernels.cpu import library
from support import ROOT, TESTS
from support import cpu_operators as operators
from support.cpu_kernel_cases import (
    CONVOLUTIONS,
    SMALL,
    Shape,
    arguments,
    assert_correct,
    assert_same_bits,
    inside_nan,
    of_image,
    run,
    truth,
)

# relative RMS errors; one input that lies between two bfloat16 may be rounded to the other one
BOUNDS = {"raw": 5e-4, "affine": 1e-6}
THREADS = (2, 3, 5)
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


def use(monkeypatch, address):
    monkeypatch.setattr(operators, "table", lambda: operators.Operators.from_address(address))


@pytest.fixture(params=[name for name in library.INSTRUCTION_SETS if name != "neon"])
def instruction_set(request, monkeypatch):
    """Its name; the operators run as compiled for it."""
    if request.param not in library.available("bfloat16"):
        pytest.skip(f"this processor or this build has no {request.param}")
    use(monkeypatch, library.load(request.param, "bfloat16"))
    return request.param


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv3x3(shape):
    assert_correct("conv3x3", shape, BOUNDS, precision=torch.bfloat16)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_same_bits_for_any_number_of_threads_and_an_image_alone(shape):
    passed = arguments("conv3x3", shape)
    once = run("conv3x3", shape, passed)
    for threads in THREADS:
        assert_same_bits(run("conv3x3", shape, passed, threads), once)
    for image in range(shape.images):
        alone = run("conv3x3", dataclasses.replace(shape, images=1), of_image(shape, passed, image))
        assert_same_bits(
            alone, {name: value.reshape(shape.images, -1, *value.shape[1:])[image] for name, value in once.items()}
        )


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(special):
    shape = Shape(9, 11, 32, (("activation", 32), ("upsampled", 32)))
    for name in ("raw", "affine", "weight"):
        passed = arguments("conv3x3", shape)
        array = passed["weight"] if name == "weight" else getattr(passed["sources"][0], name)
        changed = inside_nan(array)
        changed.reshape(-1)[changed.size // 2] = special
        if name == "weight":
            passed["weight"] = changed
        else:
            passed["sources"] = [
                dataclasses.replace(passed["sources"][0], **{name: changed}),
                *passed["sources"][1:],
            ]
        touched = ~np.isfinite(truth("conv3x3", shape, passed, torch.bfloat16)["raw"])
        assert not np.isfinite(run("conv3x3", shape, passed, threads=2)["raw"][touched]).any()


@pytest.mark.usefixtures("instruction_set")
def test_weights_are_rounded_to_nearest_even():
    weight = np.zeros((32, 32, 3, 3), np.float32)
    half = np.float32(2.0**-8)  # of the last place of a bfloat16 from 1 to 2
    values = [1 + half, 1 + 3 * half, 1 + half * np.float32(1.001), -1 - half, 3e38, 3.4e38, 1e-39, 1e-38, np.inf, 0.1]
    weight.flat[: len(values)] = values
    expected = torch.tensor(np.array(values, np.float32)).to(torch.bfloat16).view(torch.int16).numpy()
    expected[6] = 0  # of numbers that are not normal ones, tiles make zero
    expected[7] = 0
    packed = operators.pack_conv3x3(weight).view(np.int16)
    assert sorted(packed[packed != 0].tolist()) == sorted(expected[expected != 0].tolist())


@pytest.mark.usefixtures("instruction_set")
@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(
    shape=st.builds(
        Shape,
        height=st.integers(2, 40),
        width=st.integers(2, 40),
        channels=st.sampled_from([32, 64, 96]),
        sources=st.lists(
            st.tuples(st.sampled_from(["activation", "pooled", "upsampled"]), st.sampled_from([32, 64])),
            min_size=1,
            max_size=3,
        ).map(tuple),
        images=st.integers(1, 2),
        draws=st.integers(1, 3),
        embedding=st.booleans(),
    ),
    threads=st.integers(1, 4),
)
def test_any_shape(shape, threads):
    assert_correct("conv3x3", shape, BOUNDS, threads, torch.bfloat16)


@pytest.mark.build
@pytest.mark.parametrize("name", ["17x33", "19x23-pooled", "17x33-upsampled-and-padded", "one-column"])
def test_neon(name, emulator, monkeypatch):
    emulator.replace_operators(monkeypatch, "bfloat16")
    assert_correct("conv3x3", CONVOLUTIONS[name], BOUNDS, 2, torch.bfloat16)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """The operators for AMX, with functions in place of the instructions for tiles."""
    built = tmp_path_factory.mktemp("tiles") / "tiles.so"
    flags = "-std=c++17 -O2 -fPIC -shared -ffp-contract=fast -fno-math-errno -Wall -Wextra -DSPR_AMX -DSPR_SET=tiles"
    folder = TESTS / "kernels/cpu/native/emulated_tiles"
    command = ["c++", *flags.split(), f"-I{folder}", ROOT / "kernels/cpu/operators.cpp", "-o", built]
    subprocess.run(command, check=True)
    return ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(built)), "spr_bfloat16_tiles"))


@pytest.mark.build
@pytest.mark.parametrize("name", ["17x33", "19x23-pooled", "17x33-upsampled-and-padded", "256-to-512", "one-column"])
def test_tiles_have_the_bits_of_plain_loops(name, tiles, monkeypatch):
    shape = CONVOLUTIONS[name]
    passed, results = arguments("conv3x3", shape), []
    for address in (tiles, library.load("generic", "bfloat16")):
        use(monkeypatch, address)
        results.append(run("conv3x3", shape, passed, threads=2))
    assert_same_bits(*results)


@pytest.mark.skipif("amx" not in library.available("bfloat16"), reason=str(library.amx_missing()))
@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_amx_has_the_bits_of_plain_loops(shape, monkeypatch):
    passed, results = arguments("conv3x3", shape), []
    for name in ("amx", "avx512"):
        use(monkeypatch, library.load(name, "bfloat16"))
        results.append(run("conv3x3", shape, passed, threads=2))
    assert_same_bits(*results)
