import functools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from sprfast.bench.gpu import convolution_turns
from sprfast.bench.gpu.convolution import (
    FLOAT8,
    TILES,
    Convolution,
    Tile,
    cropped,
    merged,
    packed,
    padded,
    quantised,
    tiles,
)
from sprfast.kernels.triton import launch
from sprfast.kernels.triton.self_test import TOLERANCE
from support import ROOT

GROUPS = 32
# channels in and out, height and width of each 3x3 convolution behind the first one, 192x192
PUBLISHED = (
    *((64, 64, 192), (64, 128, 96), (128, 128, 96), (128, 256, 48), (256, 256, 48), (256, 512, 24), (512, 512, 24)),
    *((512, 512, 12), (1024, 512, 24), (512, 256, 24), (512, 256, 48), (256, 128, 48), (256, 128, 96)),
    *((128, 64, 96), (128, 64, 192)),
)


def drawn(kind, samples, given, channels, height, width, device="cpu"):
    """Arguments of a convolution in this type, and what it must give in float64."""
    generator = torch.Generator(device).manual_seed(height * width + given)

    def random(*shape):
        return torch.randn(shape, device=device, generator=generator)

    x, weight = random(samples, given, height, width), random(channels, given, 3, 3)
    bias = 30.0 + random(channels)  # a mean far from zero
    scale = torch.full((channels,), (9 * given) ** -0.5, device=device)
    if kind == FLOAT8:
        x, of_map = quantised(padded(x), (0, 1, 2))
        weight, of_channels = quantised(
            weight * torch.arange(1, channels + 1, device=device)[:, None, None, None], (1, 2, 3)
        )
        scale *= (of_map * of_channels).flatten()
        pixels = cropped(x.double(), height, width)
    else:
        weight = weight.to(kind)
        x = padded(x.to(kind))
        pixels = cropped(x, height, width).double()
    truth = F.conv2d(pixels, weight.double(), padding=1) * scale.double()[:, None, None]
    return (x, packed(weight), scale, bias, (height, width), GROUPS), truth


def convolved(arguments, tile, storage):
    each = Convolution.of(*arguments, tile, storage)
    each.out.fill_(torch.nan)
    each.partial.fill_(torch.nan)
    each.run()
    return each


def checked(each, arguments, truth, tolerance):
    """The map is what it should be, with zeros between its rows; the statistics are the map's."""
    size, bias = arguments[4], arguments[3]
    got = cropped(each.out, *size)
    assert (got.double() - truth).norm() <= tolerance * truth.norm()
    assert (each.out.unflatten(1, (size[0], size[1] + 1))[:, :, -1] == 0).all()
    values = (got.double() + bias[:, None, None]).unflatten(1, (GROUPS, -1)).flatten(2)
    mean, variance = merged(each.partial)
    assert torch.allclose(mean, values.mean(2), rtol=1e-6)
    assert torch.allclose(variance, values.var(2, unbiased=False), rtol=1e-4)


@pytest.mark.skipif(not launch.INTERPRETED, reason="for machines without a CUDA device")
@pytest.mark.parametrize("kind", [torch.float16, FLOAT8])  # the interpreter multiplies bfloat16 wrongly
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 32, 32, 5, 3), Tile(64, 32)),  # less than a tile
        ((1, 32, 64, 5, 12), Tile(64, 32)),  # the second tile has a zero alone; two tiles of channels
        ((2, 256, 32, 9, 7), Tile(64, 32)),  # several steps of channels; tiles that end within a sample
    ],
)
def test_convolution_in_the_interpreter(kind, shape, tile):
    arguments, truth = drawn(kind, *shape)
    each = convolved(arguments, tile, torch.float16)
    checked(each, arguments, truth, TOLERANCE[torch.float16])  # products and sums are exact beside that
    alone = convolved((arguments[0][-1:].clone(), *arguments[1:]), tile, torch.float16)
    assert torch.equal(alone.out, each.out[-1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [torch.bfloat16, FLOAT8])
@pytest.mark.parametrize("shape", [(64, 64, 192), (128, 128, 96), (256, 512, 24), (512, 512, 12)])
def test_convolution_on_a_gpu(kind, shape):
    given, channels, size = shape
    arguments, truth = drawn(kind, 3, given, channels, size, size, "cuda")
    tolerance = convolution_turns.FLOAT8_TOLERANCE if kind == FLOAT8 else TOLERANCE[kind]
    for tile in tiles(channels, arguments[0].shape[1], launch.capability(truth.device)):
        checked(convolved(arguments, tile, torch.bfloat16), arguments, truth, tolerance)


def test_layout_has_zeros_behind_each_row():
    x = torch.randn(2, 8, 3, 5)
    flat = padded(x)
    assert torch.equal(cropped(flat, 3, 5), x)
    assert flat.shape == (2, 18, 8)
    assert flat.count_nonzero() == x.count_nonzero()


def test_quantised_values_are_within_half_a_step():
    values = torch.randn(4, 100) * torch.tensor([1e-3, 1.0, 1e4, 0.0])[:, None]
    rounded, scale = quantised(values, (1,))
    assert rounded.float().abs().amax(1).tolist() == [448.0, 448.0, 448.0, 0.0]
    normal = values.abs() > 2**-6 * scale
    assert ((rounded.float() * scale - values).abs() <= 2**-4 * values.abs())[normal].all()


def test_tiles_of_the_published_network():
    found = {(channels, size): tiles(channels, size * (size + 1), 90) for _, channels, size in PUBLISHED}
    assert found[512, 12] == [Tile(64, 128)]  # others compute a half more
    assert found[64, 192] == [Tile(128, 64), Tile(256, 64)]
    assert found[512, 24] == [Tile(64, 128), Tile(128, 128), Tile(128, 256)]
    assert {tile for each in found.values() for tile in each} == set(TILES[1:])
    assert tiles(512, 600, 100) == [Tile(64, 128), Tile(128, 128)]
    assert tiles(16, 100, 90) == []


def test_a_wrong_tile_has_no_speed(monkeypatch):
    monkeypatch.setattr(Convolution, "run", lambda each: each.out.zero_())
    call = functools.partial(F.conv2d, torch.randn(1, 32, 6, 5).half(), torch.randn(32, 32, 3, 3).half(), padding=1)
    row = convolution_turns._row(call, torch.device("cpu"), "float16", 1, math.inf)
    json.dumps(row, allow_nan=False)
    assert {name: way["status"] for name, way in row["ways"].items()} == {
        "cudnn": "measured",
        "float16": "failed",
        "float8": "failed",
    }
    late = convolution_turns._row(call, torch.device("cpu"), "float16", 1, -math.inf)
    rows = [{"input": [1], "weight": [2], **each} for each in (row, late)]
    problems = convolution_turns.problems({"batches": [{"images": 3, "convolutions": rows}]})
    assert len(problems) == 5
    assert problems[0].startswith("3 images, [1] by [2], float16: ")
    assert "computes something else" in problems[0]
    assert {problem.rpartition(": ")[2] for problem in problems[2:]} == {"out of time"}


@pytest.mark.compile
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn"])
def test_machine_code_of_every_tile(capability, kind):
    """Tensor cores, operands by the tensor memory accelerator alone, and no spill."""
    code = f"""
import json, torch
from sprfast.bench.gpu.convolution import Convolution, tiles
from sprfast.kernels.triton import compile_report, launch

def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")

found = []
with launch.recorded({capability}):
    for given, channels, size, tile in (
        *((64, 64, 192, tile) for tile in tiles(64, 192 * 193, {capability})),
        *((512, 256, 48, tile) for tile in tiles(256, 48 * 49, {capability})),
    ):
        storage = torch.{kind}
        x, weight = empty(3, size * (size + 1), given, dtype=storage), empty(9 * channels, given, dtype=storage)
        each = Convolution.of(
            x, weight, empty(channels), empty(channels), (size, size), 32, tile, torch.bfloat16
        ).launch
        (report,) = compile_report.compile_launches([each], {capability})
        code = compile_report._compile_source(compile_report._source(each), each.options, {capability}).asm
        copies = code["ptx"].count("cp.async.bulk.tensor.3d.shared")
        found.append([report.to_json(), copies, code["ttgir"].count("ttg.local_load")])
print(json.dumps(found))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    products = {
        90: {"bfloat16": "HGMMA", "float8_e4m3fn": "QGMMA"},
        100: {"bfloat16": "UTCHMMA", "float8_e4m3fn": "UTCQMMA"},
    }
    for report, copies, reads in json.loads(done.stdout):
        assert (report["stack_bytes"], report["local_accesses"]) == (0, 0), report
        assert report["shared_bytes"] <= 227 << 10
        assert report["resident_warps"] >= 4
        assert set(report["matrix"]) == {products[capability][kind]}
        assert copies > 1  # to shared memory, before the loop and in it
        assert reads == 0  # from there to registers, instead of to the tensor cores
