"""How operators are launched, and rules that their source keeps."""

import ast
import dataclasses
import functools
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch
from sprfast.kernels.triton.common import sample_offset
from support.kernel_cases import DEVICE, OPERATORS, Shape, arguments

PLAIN = Shape(32, 6, 8, images=2, draws=2)


@triton.jit
def _offsets_kernel(p_out, first, stride):
    """Store the offset of sample first + i at i."""
    i = tl.program_id(0)
    tl.store(p_out + i, sample_offset(first + i, stride))


@pytest.mark.parametrize(
    ("first", "stride"),
    [
        pytest.param(0, 64 * 192 * 192, id="a-thousand-maps"),  # passes 2^31 at 911
        pytest.param(65535 - 1000, 2**30, id="most-samples-of-the-largest-stride"),
    ],
)
def test_offset_of_a_sample_has_64_bits(first, stride):
    out = torch.full((1000,), -1, dtype=torch.int64, device=DEVICE)
    _offsets_kernel[(1000,)](out, first, stride)
    assert out.tolist() == [n * stride for n in range(first, first + 1000)]
    assert out[-1] > 2**31


# Rules of the source.


@functools.cache
def jitted():
    """The syntax tree of every Triton function, by name."""
    trees = [ast.parse(path.read_text()) for path in sorted(Path(kernels.__file__).parent.glob("*.py"))]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {f.name: f for f in functions if any(ast.unparse(d).startswith("triton.jit") for d in f.decorator_list)}


def narrow_products(function):
    """Products of a sample's or image's index in 32 bits; `i_b * draws`, itself an index, is
    none.
    """

    def holds_index(node):
        if isinstance(node, ast.Name):
            return node.id in ("i_n", "i_b")
        if isinstance(node, ast.Attribute | ast.Call) and "to(tl.int64)" in ast.unparse(node):
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):  # an index within an image
            return False
        return any(holds_index(child) for child in ast.iter_child_nodes(node))

    products = [node for node in ast.walk(function) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)]
    return [ast.unparse(p) for p in products if holds_index(p) and ast.unparse(p) != "i_b * draws"]


def dots(function):
    return [node for node in ast.walk(function) if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.dot"]


def test_kernels_address_samples_through_sample_offset_only():
    assert {name: found for name, function in jitted().items() if (found := narrow_products(function))} == {}
    for name, function in jitted().items():
        if name.endswith("_kernel"):
            called = {
                node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")
            }
            sources = [ast.unparse(jitted()[each]) for each in called & jitted().keys()]
            assert any("sample_offset(" in source for source in [ast.unparse(function), *sources]), name


@pytest.mark.parametrize(
    "line", ["p + i_n * stride", "p + stride * (i_n + 1)", "p + (i_b * draws + d) * stride", "i_b * image_stride"]
)
def test_a_product_of_a_sample_index_is_noticed(line):
    assert narrow_products(ast.parse(line))


def test_every_product_of_matrices_names_its_precision():
    # The default for float32 is TF32, which loses three digits.
    calls = [call for function in jitted().values() for call in dots(function)]
    assert len(calls) >= 2
    for call in calls:
        assert "input_precision" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


def test_the_anomaly_map_is_multiplied_in_ieee_float32():
    (call,) = dots(jitted()["_matmul_kernel"])
    assert (
        next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "input_precision") == "ieee"
    )


@pytest.mark.parametrize(
    ("storage", "precision"), [(torch.float32, "ieee"), (torch.float16, "tf32x3"), (torch.bfloat16, "tf32x3")]
)
def test_the_first_convolution_never_multiplies_in_tf32_alone(storage, precision):
    with launch.recorded(90) as launches:
        kernels.perturb_conv3x3(*arguments("perturb_conv3x3", PLAIN, storage, "meta").values())
    assert launches[0].constants["PRECISION"] == precision


def test_kernels_with_matrix_products_run_on_four_warps():
    # Triton 3.6 and 3.7 miscompile products whose taps are flattened into one loop when there are 8
    # warps.
    names = {name.strip("_").removesuffix("_kernel") for name, function in jitted().items() if dots(function)}
    assert names == {"convolved", "matmul"}
    names = {"noise_conv3x3", "perturb_conv3x3", "matmul"}
    overrides = [rows for (name, _), rows in launch.ARCHITECTURES.items() if name in names]
    for rows in [launch.TABLE[name] for name in names] + overrides:
        assert max(tile.warps for tile in rows.values()) <= 4


# Launching.


def launches_of(operator, shape=PLAIN, storage=torch.float32, device="meta", capability=90):
    with launch.recorded(capability) as launches:
        getattr(kernels, operator)(*arguments(operator, shape, storage, device).values())
    return launches


def test_tile_is_that_of_the_first_row_with_so_many_channels():
    rows = launch.TABLE["affine_swish"]
    for channels, expected in ((16, rows[32]), (32, rows[32]), (64, rows[64]), (65, rows[128]), (1024, rows[1024])):
        assert launch.tile("affine_swish", channels, torch.device("cpu")) == expected
    with pytest.raises(launch.UnsupportedError, match=r"affine_swish: 1025 channels, at most 1024"):
        launch.tile("affine_swish", 1025, torch.device("cpu"))


def test_an_architecture_overrides_the_table_of_one_kernel(monkeypatch):
    special = launch.Tile(8, 2)
    monkeypatch.setitem(launch.ARCHITECTURES, ("affine_swish", 80), {1024: special})
    for capability, expected in ((80, special), (90, launch.TABLE["affine_swish"][32])):
        (chosen,) = launches_of("affine_swish", capability=capability)
        assert (chosen.constants["BLOCK"], chosen.warps) == (expected.pixels, expected.warps)
    assert launches_of("affine_swish_head", capability=80)[0].warps == launch.TABLE["affine_swish_head"][32].warps


def test_tiles_do_not_depend_on_the_number_of_samples():
    for operator in OPERATORS:
        few, many = launches_of(operator), launches_of(operator, dataclasses.replace(PLAIN, images=100))
        assert [(x.name, x.constants, x.warps) for x in few] == [(x.name, x.constants, x.warps) for x in many]


@pytest.mark.parametrize(
    ("storage", "pixels", "expected"),
    [(torch.bfloat16, 32, 5), (torch.float32, 32, 3), (torch.bfloat16, 256, 1), (torch.bfloat16, 2, 9)],
    ids=["two-loads", "four-loads", "more-than-fit", "less-than-one"],
)
def test_stages_keep_eight_loads_in_flight(storage, pixels, expected):
    raw = torch.empty(1, 64, 8, 8, dtype=storage, device="meta")
    assert launch.stages(raw, launch.Tile(pixels, 4), 64) == expected


def test_recording_runs_nothing_and_ends():
    given = arguments("affine_swish", PLAIN, torch.float32, DEVICE)
    with launch.recorded(90) as outer:
        kernels.affine_swish(*given.values())
        with launch.recorded(80) as inner:
            kernels.affine_swish(*given.values())
        kernels.affine_swish(*given.values())
    assert (len(outer), len(inner)) == (2, 1)
    assert given["out"].isnan().all()
    kernels.affine_swish(*given.values())
    assert given["out"].isfinite().all()
    assert len(outer) == 2


def test_recording_ends_with_an_error_too():
    with pytest.raises(KeyError), launch.recorded(90):
        raise KeyError
    given = arguments("affine_swish", PLAIN, torch.float32, DEVICE)
    kernels.affine_swish(*given.values())
    assert given["out"].isfinite().all()


@pytest.mark.parametrize(
    ("operator", "names"),
    [
        ("noise_conv3x3", ["noise_conv3x3"]),
        ("perturb_conv3x3", ["perturb_conv3x3", "group_affine"]),
        ("group_norm_affine", ["group_statistics"]),
        ("group_norm_swish", ["group_norm_swish"]),
        ("norm_swish", ["norm_swish"]),
        ("affine_swish_head", ["affine_swish_head"]),
        ("anomaly_map", ["matmul", "matmul"]),
    ],
)
def test_launches_of_an_operator(operator, names):
    assert [each.name for each in launches_of(operator)] == names


def test_a_launch_describes_kernel_shapes_and_constants():
    text = launches_of("affine_swish")[0].describe()
    tile = launch.TABLE["affine_swish"][32]
    assert text == (
        "affine_swish(p_raw float32(4, 32, 6, 8), p_affine float32(4, 2, 32), p_out float32(4, 32, 6, 8);"
        f" C=32, BLOCK={tile.pixels}, warps={tile.warps})"
    )


def configuration(**changes):
    (recorded,) = launches_of("affine_swish", device=DEVICE)
    return dataclasses.replace(
        recorded, **{name: {**getattr(recorded, name), **new} for name, new in changes.items()}
    ).configuration


def test_equal_launches_on_other_memory_share_a_configuration():
    assert configuration() == configuration()
    assert len({configuration()}) == 1  # hashable


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"arguments": {"p_raw": torch.zeros(8, dtype=torch.bfloat16, device=DEVICE)}}, id="type"),
        pytest.param({"arguments": {"p_raw": torch.zeros(8, device=DEVICE)[1:]}}, id="alignment"),
        pytest.param({"arguments": {"pixels": 49}}, id="size"),
        pytest.param({"constants": {"BLOCK": 1}}, id="constant"),
    ],
)
def test_launches_that_compile_to_other_code_differ_in_configuration(changes):
    assert configuration(**changes) != configuration()


def test_warps_and_kernel_are_part_of_the_configuration():
    (recorded,) = launches_of("affine_swish", device=DEVICE)
    assert dataclasses.replace(recorded, warps=recorded.warps + 1).configuration != recorded.configuration
    assert recorded.configuration[0] == "affine_swish"
