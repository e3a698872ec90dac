"""What `sprfast.kernels.cpu.operators` refuses, each with a sentence that names the argument;
nothing is written then.
"""

import dataclasses
import inspect

import numpy as np
import pytest

from sprfast.kernels.cpu import library, operators
from support.cpu_kernel_cases import OPERATORS, OUTPUTS, Shape, arguments

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))

KINDS = ("activation", "pooled", "upsampled")
SHAPE = Shape(5, 6, 32, tuple((kind, 32) for kind in KINDS), images=3, draws=2, noise_per_image=True)
PARAMETERS = ("sources", "groups", "draws", "threads")  # no arrays


def passed(operator):
    """Arguments that the operator takes."""
    outputs = {name: np.full(size, np.nan, dtype=np.float32) for name, size in SHAPE.sizes(operator).items()}
    arrays = {**arguments(operator, SHAPE), **outputs, "threads": 2}
    if operator == "conv3x3":
        arrays["weight"] = operators.pack_conv3x3(arrays["weight"])
    if operator != "head":
        arrays["space"] = np.zeros(SHAPE.space(operator, 2), dtype=np.float32)
    return arrays


def refuse(operator, name, **changed):
    given = {**passed(operator), **changed}
    with pytest.raises(ValueError, match=f"^{name}: ") as refusal:
        getattr(operators, operator)(**given)
    assert "\n" not in str(refusal.value)
    for output in set(OUTPUTS[operator]) - set(changed):
        assert np.isnan(given[output]).all()


def misaligned(array):
    memory = np.empty(array.nbytes + 1, dtype=np.uint8)
    return memory[1:].view(np.float32).reshape(array.shape)


FAULTS = {
    "float64": lambda array: array.astype(np.float64),
    "float16": lambda array: array.astype(np.float16),
    "int32": lambda array: array.view(np.int32),
    "big-endian": lambda array: array.astype(">f4"),
    "strided": lambda array: np.stack([array, array], axis=-1)[..., 0],
    "reversed": lambda array: array[..., ::-1] if array.shape[-1] > 1 else np.broadcast_to(np.float32(0), array.shape),
    "misaligned": misaligned,
    "list": lambda array: array.tolist(),
    "none": lambda array: None,
    "one-dimension-more": lambda array: array[None],
    "no-dimension": lambda array: array.reshape(-1)[0:1].reshape(()),
    "empty": lambda array: array[:0],
}


def arrays_of(operator):
    return [name for name in inspect.signature(getattr(operators, operator)).parameters if name not in PARAMETERS]


# One array of each kind: a parameter, a feature map, scratch memory, and those that tell sizes.
KINDS_OF_ARRAYS = [
    ("conv3x3", "bias"),
    ("conv3x3", "raw"),
    ("conv3x3", "space"),
    ("perturb_conv3x3", "std"),
    ("perturb_conv3x3", "noise"),
    ("anomaly_map", "rows"),
]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_array_that_is_not_contiguous_float32(fault):
    for operator, name in KINDS_OF_ARRAYS:
        refuse(operator, name, **{name: fault(passed(operator)[name])})


@pytest.mark.parametrize(
    ("operator", "name"), [(operator, name) for operator in OPERATORS for name in arrays_of(operator)]
)
def test_every_array_is_checked(operator, name):
    for fault in ("float64", "strided", "list", "one-dimension-more"):
        refuse(operator, name, **{name: FAULTS[fault](passed(operator)[name])})


@pytest.mark.parametrize("index", [0, 1, 2])
def test_array_of_a_source_that_is_not_contiguous_float32(index):
    sources = passed("conv3x3")["sources"]
    for field in ("raw", "affine", "embedding"):
        for fault in FAULTS.values():
            changed = fault(getattr(sources[index], field))
            if field != "embedding" or changed is not None:  # a source may have none
                refuse("conv3x3", rf"sources\[{index}\]\.{field}", sources=replaced(sources, index, **{field: changed}))


def replaced(sources, index, **changes):
    return [*sources[:index], dataclasses.replace(sources[index], **changes), *sources[index + 1 :]]


@pytest.mark.parametrize("operator", OPERATORS)
def test_read_only_result(operator):
    given = passed(operator)
    for name in {*OUTPUTS[operator], "space"} & given.keys():
        copy = given[name].copy()
        copy.flags.writeable = False
        refuse(operator, name, **{name: copy})


@pytest.mark.parametrize("operator", OPERATORS)
def test_arrays_that_disagree_about_a_size(operator):
    """Each array longer by one along each axis: one of those that disagree is named."""
    given = passed(operator)
    for name in set(arrays_of(operator)) - {"space"}:
        for axis in range(given[name].ndim):
            longer = np.concatenate([given[name], given[name].take([0], axis)], axis)
            refuse(operator, r"[a-z0-9.\[\]]+", **{name: longer})


@pytest.mark.parametrize(
    ("operator", "name", "change"),
    [
        ("conv3x3", "weight", lambda given: {"weight": given["weight"][:-1].copy()}),
        ("conv3x3", "weight", lambda given: {"sources": given["sources"][:2]}),
        ("conv3x3", "sources", lambda given: {"sources": []}),
        ("conv3x3", "draws", lambda given: {"draws": 4}),
        ("conv3x3", "draws", lambda given: {"draws": 0}),
        ("conv3x3", r"sources\[0\]\.embedding", lambda given: {"draws": 3}),
        ("conv3x3", "groups", lambda given: {"groups": 5}),
        ("conv3x3", "groups", lambda given: {"groups": 0}),
        ("conv3x3", "groups", lambda given: {"groups": 64}),
        ("conv3x3", "threads", lambda given: {"threads": 0}),
        ("conv3x3", "threads", lambda given: {"threads": 2**32 + 1}),
        ("conv3x3", "space", lambda given: {"space": given["space"][:-1]}),
        ("conv3x3", "space", lambda given: {"threads": 3}),
        ("conv3x3", "raw", lambda given: {"raw": np.empty((6, 5, 6, 48), dtype=np.float32)}),
        ("perturb_conv3x3", "std", lambda given: {"std": np.ones(4, dtype=np.float32)}),
        ("perturb_conv3x3", "noise", lambda given: {"noise": given["noise"][:, :2].copy()}),
        ("perturb_conv3x3", "noise", lambda given: {"std": np.ones(3, dtype=np.float32)}),
        ("perturb_conv3x3", "weight", lambda given: {"weight": given["weight"][:26].copy()}),
        ("perturb_conv3x3", "groups", lambda given: {"groups": 33}),
        ("perturb_conv3x3", "groups", lambda given: {"groups": -32}),
        ("perturb_conv3x3", "threads", lambda given: {"threads": -1}),
        ("perturb_conv3x3", "space", lambda given: {"space": given["space"][:-1]}),
        ("perturb_conv3x3", "raw", lambda given: {"raw": np.empty((6, 5, 6, 16), dtype=np.float32)}),
        ("head", "scale", lambda given: {"scale": np.ones(4, dtype=np.float32)}),
        ("head", "noise", lambda given: {"noise": given["noise"][:, :2].copy()}),
        ("head", "threads", lambda given: {"threads": 0}),
        ("head", "raw", lambda given: {"raw": given["raw"][..., :16].copy()}),
        ("anomaly_map", "errors", lambda given: {"errors": np.zeros((3, 2, 5, 6), dtype=np.float32)}),
        ("anomaly_map", "maps", lambda given: {"maps": np.zeros((3, 1, 37, 36), dtype=np.float32)}),
        ("anomaly_map", "columns", lambda given: {"columns": given["rows"]}),
        ("anomaly_map", "space", lambda given: {"space": given["space"][:-1]}),
        ("anomaly_map", "threads", lambda given: {"threads": 0}),
    ],
)
def test_value_that_does_not_fit(operator, name, change):
    refuse(operator, name, **change(passed(operator)))


@pytest.mark.parametrize(
    ("index", "kind"), [(index, kind) for index in range(3) for kind in KINDS if kind != KINDS[index]]
)
def test_source_whose_size_is_that_of_another_kind(index, kind):
    refuse("conv3x3", rf"sources\[{index}\]\.raw", sources=replaced(passed("conv3x3")["sources"], index, kind=kind))


@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [
        ("activation", 6, 5),
        ("pooled", 9, 12),
        ("pooled", 12, 12),
        ("pooled", 10, 14),
        ("upsampled", 1, 3),
        ("upsampled", 3, 3),
        ("upsampled", 2, 2),
    ],
)
def test_source_of_another_size(kind, height, width):
    """For an output of 5x6."""
    index = KINDS.index(kind)
    sources = passed("conv3x3")["sources"]
    changed = np.zeros((6, height, width, sources[index].raw.shape[3]), dtype=np.float32)
    refuse("conv3x3", rf"sources\[{index}\]\.raw", sources=replaced(sources, index, raw=changed))


def test_source_of_an_unknown_kind():
    refuse("conv3x3", r"sources\[1\]\.kind", sources=replaced(passed("conv3x3")["sources"], 1, kind="normal"))


def test_source_of_another_number_of_samples():
    sources = passed("conv3x3")["sources"]
    for index, source in enumerate(sources):
        fewer = replaced(sources, index, raw=source.raw[:4].copy(), affine=source.affine[:4].copy())
        refuse("conv3x3", rf"sources\[{index}\]\.raw", sources=fewer)


def test_source_whose_channels_are_no_multiple_of_32():
    sources = passed("conv3x3")["sources"]
    changed = replaced(sources, 2, raw=sources[2].raw[..., :16].copy(), affine=sources[2].affine[..., :16].copy())
    refuse("conv3x3", r"sources\[2\]\.raw", sources=changed)


@pytest.mark.parametrize(("rows", "columns"), [(10, 12), (10, 13), (11, 12), (11, 13)])
def test_pooling_drops_an_odd_row_or_column(rows, columns):
    given = passed("conv3x3")
    operators.conv3x3(
        **{**given, "sources": replaced(given["sources"], 1, raw=np.zeros((6, rows, columns, 32), dtype=np.float32))}
    )
    assert np.isfinite(given["raw"]).all()


@pytest.mark.parametrize(
    "shape", [(32, 32, 3, 2), (32, 32, 2, 3), (32, 16, 3, 3), (48, 32, 3, 3), (0, 32, 3, 3), (32, 32, 9), (32, 288)]
)
def test_weight_that_cannot_be_packed(shape):
    with pytest.raises(ValueError, match=r"^weight: "):
        operators.pack_conv3x3(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("shape", [(32, 3, 3, 2), (32, 4, 3, 3), (48, 3, 3, 3), (0, 3, 3, 3), (32, 27)])
def test_first_weight_that_cannot_be_packed(shape):
    with pytest.raises(ValueError, match=r"^weight: "):
        operators.pack_perturb(np.zeros(shape, dtype=np.float32))


PACKED = {name: fault for name, fault in FAULTS.items() if name not in ("one-dimension-more", "no-dimension", "empty")}


@pytest.mark.parametrize("fault", PACKED.values(), ids=PACKED)
def test_fault_of_what_is_packed_or_activated(fault):
    with pytest.raises(ValueError, match=r"^weight: "):
        operators.pack_conv3x3(fault(np.zeros((32, 32, 3, 3), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"^weight: "):
        operators.pack_perturb(fault(np.zeros((32, 3, 3, 3), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"^x: "):
        operators.swish(fault(np.zeros((4, 5), dtype=np.float32)))


SPACES = {
    operators.conv3x3_space: {
        "samples": 2,
        "height": 8,
        "width": 8,
        "channels_in": 32,
        "channels_out": 64,
        "threads": 1,
    },
    operators.perturb_conv3x3_space: {
        "images": 2,
        "draws": 1,
        "height": 8,
        "width": 8,
        "channels_out": 64,
        "threads": 1,
    },
    operators.anomaly_map_space: {"images": 2, "height": 8, "width": 8, "size": 16},
}


@pytest.mark.parametrize(("space", "name"), [(space, name) for space, sizes in SPACES.items() for name in sizes])
def test_space_for_a_size_that_is_none(space, name):
    assert space(**SPACES[space]) > 0
    for size in (0, -32, 2**32 + 32, *([48] if name.startswith("channels") else [])):
        with pytest.raises(ValueError, match=f"{name}.*: "):
            space(**{**SPACES[space], name: size})


def test_memory_begins_on_a_line():
    for count in (1, 7, 1000):
        array = operators.empty((count, 3))
        assert array.shape == (count, 3)
        assert array.dtype == np.float32
        assert array.ctypes.data % operators.LINE == 0
