"""The folded model as an ONNX graph: standard operators only, every tensor with the type that it
is computed in.

    image (B, 3, H, W), noise (D, 3, H, W)  →  error_map (B, 1, H, W), anomaly_map (B, 1, 256, 256),
    pred_score (B,)

In 16 bits, convolutions and what is pooled, upsampled and concatenated are 16-bit; the
perturbation, the first convolution, every normalisation with its swish, the head, the residual and
the maps stay float32, with the casts written into the graph, so that a strongly typed builder
cannot do otherwise.

Quantized, every convolution but the first and the head takes 8-bit values and weights, each
followed by the DequantizeLinear that TensorRT's explicit quantization wants right before a
convolution; biases, sums and what lies between convolutions are as without. The first convolution
sees the noise itself and costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sprfast._version import __version__
from sprfast.config import Precision
from sprfast.errors import InputError
from sprfast.formats.export_metadata import MAX_BATCH, Quantization
from sprfast.method.anomaly_map import MAP_SIZE, smoothing_matrix
from sprfast.method.folded import BLOCKS, HALVINGS, MIN_SIZE, SKIPS, Array, ConvNorm, FoldedModel
from sprfast.method.overflow import watched
from sprfast.system.libraries import require

if TYPE_CHECKING:
    import onnx

# GroupNormalization, or InstanceNormalization over the groups and an affine
Normalization = Literal["group", "instance"]

INPUTS = ("image", "noise")
OUTPUTS = ("error_map", "anomaly_map", "pred_score")
# the convolutions that may be
QUANTIZED = tuple(f"{block}.{place}" for block in BLOCKS for place in ("first", "second"))[1:]
LARGEST: dict[Quantization, float] = {"int8": 127.0, "float8": 448.0}  # value of either sign that 8 bits hold
FLOAT16 = 65504.0  # the largest number of 16 bits
IR_VERSION = 10
EPSILON = 1e-5
MAX_BYTES = 2**31 - 2**20  # of constants: protobuf ends at 2 GiB

# GroupNormalization has a scale and a shift for each channel from 21 on, Conv and MaxPool take
# bfloat16 from 22 on
_OPSETS: dict[Precision, int] = {"float32": 21, "float16": 21, "bfloat16": 22}
_SMALLEST: dict[Precision, float] = {"float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}  # normal number


def onnx_model(
    folded: FoldedModel,
    height: int,
    width: int,
    *,
    batch: int | None = None,
    precision: Precision = "float32",
    normalization: Normalization = "group",
    quantization: Quantization | None = None,
    scales: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """The graph for images of one size; equal arguments give equal bytes.

    The names of the convolutions' weights and biases, and those of the normalisations, are those of
    `FoldedModel.to_arrays`. A NaN anywhere in an image or in its anomaly map is a NaN score.

    Args:
        folded: in float32.
        height, width: pixels at the network's input, at least 16.
        batch: images a call; None: any number.
        precision: of stored feature maps and of the convolutions.
        normalization: "group" for TensorRT, "instance" for what has no fast GroupNormalization
            (onnxruntime on a CPU).
        quantization: of the convolutions in `QUANTIZED`; None: none.
        scales: for each of them what one step of its input's 8 bits is (int8), or a 1 (float8): see
            `quantization.calibrate`.

    Raises:
        InputError: a size, number or scale is out of range, or the network is too large for an ONNX
            file.
        BackendError: onnx is not installed.
    """
    if min(height, width) < MIN_SIZE or not (batch is None or 1 <= batch <= MAX_BATCH):
        raise InputError(
            f"graph: expected at least {MIN_SIZE} pixels a side and 1 to {MAX_BATCH} images, got {height}x{width} "
            f"and a batch of {batch}"
        )
    given, needed = dict(scales or {}), QUANTIZED if quantization else ()
    if given.keys() != set(needed) or not all(0.0 < scale < math.inf for scale in given.values()):
        raise InputError(
            f"graph: quantization {quantization} needs {len(needed)} scales, each a positive number and of one "
            f"quantized convolution; "
            f"got {len(given)}, see quantization.calibrate"
        )
    return _Graph(folded, (height, width), precision, normalization, quantization, given).model(batch)


def with_noise(graph: bytes, noise: npt.NDArray[np.float32]) -> bytes:
    """A serialised graph of `onnx_model` with its noise (D, 3, H, W) as a constant, for what feeds
    it images alone.

    Raises:
        BackendError: onnx is not installed.
    """
    library = require("onnx", "onnx")
    model = library.load_from_string(graph)
    (given,) = (value for value in model.graph.input if value.name == "noise")
    model.graph.input.remove(given)
    model.graph.initializer.append(library.numpy_helper.from_array(noise, "noise"))
    folded: bytes = model.SerializeToString()
    return folded


class _Graph:
    """The nodes and constants made so far, and what the layers share."""

    def __init__(
        self,
        folded: FoldedModel,
        size: tuple[int, int],
        precision: Precision,
        normalization: Normalization,
        quantization: Quantization | None,
        scales: Mapping[str, float],
    ) -> None:
        library = require("onnx", "onnx")
        types, helper = library.TensorProto, library.helper
        self._helper, self._float, self._numpy = helper, types.FLOAT, library.numpy_helper
        self._storage = {"float32": types.FLOAT, "float16": types.FLOAT16, "bfloat16": types.BFLOAT16}[precision]
        self._eight_bits = helper.tensor_dtype_to_np_dtype(
            types.FLOAT8E4M3FN if quantization == "float8" else types.INT8
        )
        self._opset, self._smallest = _OPSETS[precision], _SMALLEST[precision]
        self._quantization, self._scales = quantization, scales
        self._folded, self._size, self._normalization = folded, size, normalization
        inputs = {name: LARGEST[quantization] * scale for name, scale in scales.items()} if quantization else {}
        # 8 bits hide the NaN that follows where a convolution overflows its 16 bits
        self._watched = watched(folded, inputs, FLOAT16 if quantization and precision == "float16" else math.inf)
        self._squares: list[str] = []  # sums of squares, (B·D,), of the watched convolutions' outputs
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self, batch: int | None) -> onnx.ModelProto:
        """All nodes, from the inputs to the outputs."""
        self._outputs(self._network(self._perturbed()))
        images, size = batch or "batch", self._size
        shapes = {
            "image": (images, 3, *size),
            "noise": (self._folded.draws, 3, *size),
            "error_map": (images, 1, *size),
            "anomaly_map": (images, 1, MAP_SIZE, MAP_SIZE),
            "pred_score": (images,),
        }
        if (size_in_bytes := sum(len(constant.raw_data) for constant in self._constants.values())) > MAX_BYTES:
            raise InputError(
                f"graph: {size_in_bytes} bytes of weights, an ONNX file holds up to {MAX_BYTES}; train with a "
                f"smaller --width"
            )
        values = [self._helper.make_tensor_value_info(name, self._float, shape) for name, shape in shapes.items()]
        inputs, outputs = values[: len(INPUTS)], values[len(INPUTS) :]
        graph = self._helper.make_graph(self._nodes, "sprfast", inputs, outputs, list(self._constants.values()))
        opset = [self._helper.make_opsetid("", self._opset)]
        model: onnx.ModelProto = self._helper.make_model(
            graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="sprfast", producer_version=__version__
        )
        return model

    def _perturbed(self) -> str:
        """x + std·z for every draw: (B·D, 3, H, W)."""
        image = self._node("image.draws", "Unsqueeze", "image", self._ints("axis.1", 1))
        std = self._constant("std", self._folded.std.reshape(-1, 1, 1, 1))
        added = self._node("perturbed", "Add", image, self._node("noise.scaled", "Mul", "noise", std))
        return self._node("perturbed.flat", "Reshape", added, self._ints("shape.image", -1, 3, *self._size))

    def _network(self, x: str) -> str:
        """The last feature map, float32."""
        stored: dict[str, str] = {}
        for name in BLOCKS:
            block, last = self._folded.blocks[name], name == BLOCKS[-1]
            if name in SKIPS:
                x = self._concatenated(name, stored[SKIPS[name]], x)
            elif stored:
                x = self._node(f"{name}.pooled", "MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            x = self._stored(f"{name}.first", self._convolved(f"{name}.first", x, block.first))
            x = self._convolved(f"{name}.second", x, block.second)
            if block.embedding is not None:
                x = self._embedded(name, x, block.embedding)
            stored[name] = x = x if last else self._stored(name, x)
        return x

    def _convolved(self, name: str, x: str, layer: ConvNorm[Array]) -> str:
        """Convolution, normalisation and swish; float32."""
        exact = name not in QUANTIZED
        if name in self._scales:
            x, weight = self._quantized(name, x), self._quantized_weight(f"{name}.weight", layer.weight)
        else:
            weight = self._constant(f"{name}.weight", layer.weight, stored=not exact)
        bias = self._constant(f"{name}.bias", layer.bias, stored=not exact)
        raw = self._node(f"{name}.conv", "Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if not exact and self._storage != self._float:
            raw = self._node(f"{name}.conv.float32", "Cast", raw, to=self._float)
        if name in self._watched:
            axes = self._ints("axes.1.2.3", 1, 2, 3)
            self._squares.append(self._node(f"{name}.squares", "ReduceSumSquare", raw, axes, keepdims=0))
        normalised = self._normalised(name, raw, layer)
        return self._node(f"{name}.swish", "Mul", normalised, self._node(f"{name}.sigmoid", "Sigmoid", normalised))

    def _quantized(self, name: str, x: str) -> str:
        """`x` to 8 bits and back, with one scale."""
        scale = self._scale(f"{name}.input.scale", np.array(self._scales[name]))
        zero = self._initializer("zero.8bit", np.zeros((), self._eight_bits))
        rounded = self._node(f"{name}.quantized", "QuantizeLinear", x, scale, zero)
        return self._node(f"{name}.dequantized", "DequantizeLinear", rounded, scale, zero)

    def _quantized_weight(self, name: str, weight: Array) -> str:
        """Stored in 8 bits; int8 with a scale for each output channel, float8 with one for all.

        Of float8, TensorRT's release notes name scales per channel for matrix products only (10.6
        on Hopper, 10.7 on Ada).
        """
        assert self._quantization is not None  # there are scales
        largest, each = LARGEST[self._quantization], self._quantization == "int8"
        magnitude = np.abs(weight).max(axis=(1, 2, 3) if each else None)
        scale = self._scale(f"{name}.scale", magnitude / largest)
        steps = weight / self._numpy.to_array(self._constants[scale]).astype(np.float32).reshape(-1, 1, 1, 1)
        rounded = np.rint(steps) if each else steps
        value = self._initializer(name, np.clip(rounded, -largest, largest).astype(self._eight_bits))
        return self._node(f"{name}.dequantized", "DequantizeLinear", value, scale, **({"axis": 0} if each else {}))

    def _scale(self, name: str, value: npt.NDArray[Any]) -> str:
        """A scale in the storage type, which is that of the result too; never 0 nor subnormal."""
        return self._constant(name, np.maximum(value, self._smallest), stored=True)

    def _normalised(self, name: str, x: str, layer: ConvNorm[Array]) -> str:
        groups = self._folded.groups
        if self._normalization == "group":
            scale, shift = (self._constant(f"{name}.{part}", getattr(layer, part)) for part in ("gamma", "beta"))
            return self._node(f"{name}.norm", "GroupNormalization", x, scale, shift, num_groups=groups, epsilon=EPSILON)
        channels, halvings = len(layer.gamma), HALVINGS[name.split(".", maxsplit=1)[0]]
        grouped = self._node(f"{name}.groups", "Reshape", x, self._ints("shape.groups", 0, groups, -1))
        one, zero = self._constant("groups.one", np.ones(groups)), self._constant("groups.zero", np.zeros(groups))
        normed = self._node(f"{name}.norm", "InstanceNormalization", grouped, one, zero, epsilon=EPSILON)
        shape = self._ints(f"shape.{channels}.{halvings}", -1, channels, *self._halved(halvings))
        normed = self._node(f"{name}.norm.channels", "Reshape", normed, shape)
        scale, shift = (
            self._constant(f"{name}.{part}", getattr(layer, part).reshape(-1, 1, 1)) for part in ("gamma", "beta")
        )
        return self._node(f"{name}.shifted", "Add", self._node(f"{name}.scaled", "Mul", normed, scale), shift)

    def _embedded(self, name: str, x: str, embedding: Array) -> str:
        """Each draw's time embedding added, which is one vector for all where they are at the same
        time.
        """
        if (embedding == embedding[0]).all():
            shared = self._constant(f"{name}.embedding", embedding[0][:, None, None])
            return self._node(f"{name}.embedded", "Add", x, shared)
        shape = (*embedding.shape, *self._halved(HALVINGS[name]))
        apart = self._node(f"{name}.draws", "Reshape", x, self._ints(f"shape.{name}.draws", -1, *shape))
        vectors = self._constant(f"{name}.embedding", embedding[:, :, None, None])
        added = self._node(f"{name}.embedded", "Add", apart, vectors)
        return self._node(f"{name}.flat", "Reshape", added, self._ints(f"shape.{name}.flat", -1, *shape[1:]))

    def _concatenated(self, name: str, skip: str, x: str) -> str:
        """The skip, and `x` upsampled and padded to its size."""
        mode = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
        scales = self._constant("scales", np.array([1, 1, 2, 2]))
        up = self._node(f"{name}.upsampled", "Resize", x, "", scales, **mode)
        rows, columns = (size % 2 for size in self._halved(HALVINGS[name]))
        if rows or columns:  # left and top get the floor of half of the difference, which is none of it
            pads = self._ints(f"pads.{rows}.{columns}", 0, 0, 0, 0, 0, 0, rows, columns)
            up = self._node(f"{name}.padded", "Pad", up, pads)
        return self._node(f"{name}.concatenated", "Concat", skip, up, axis=1)

    def _outputs(self, x: str) -> None:
        """Head, residual, maps and score from the last feature map."""
        folded, (height, width) = self._folded, self._size
        weight = self._constant("head_weight", folded.head_weight[:, :, None, None])
        f = self._node("head.conv", "Conv", x, weight, kernel_shape=[1, 1])
        f = self._node("head.draws", "Reshape", f, self._ints("shape.draws", -1, folded.draws, 3, height, width))
        f = self._node("head.biased", "Add", f, self._constant("head_bias", folded.head_bias[:, :, None, None]))
        r = self._node("residual", "Add", f, "noise")
        squares = self._node("residual.squared", "Mul", r, r)
        scale = self._constant("scale", folded.scale.reshape(-1, 1, 1, 1))
        weighted = self._node("residual.weighted", "Mul", squares, scale)
        total = self._node("residual.total", "ReduceSum", weighted, self._ints("axes.1.2", 1, 2), keepdims=0)
        # 8-bit integers have no NaN, so that one in an image would get no further than the second
        # convolution
        if self._quantization:
            pixels = self._ints("axes.1.2", 1, 2)
            nothing = self._node("image.nothing.pixels", "Unsqueeze", self._nothing("image"), pixels)
            total = self._node("residual.total.checked", "Add", total, nothing)
        for squares in self._squares:
            total = self._node(f"{squares}.checked", "Add", total, self._nothing_of_draws(squares))
        self._node("error_map", "Unsqueeze", total, self._ints("axis.1", 1))
        rows = self._constant("rows", smoothing_matrix(height, folded.window))
        columns = self._constant("columns", smoothing_matrix(width, folded.window).T)
        self._node("anomaly_map", "MatMul", self._node("anomaly_map.rows", "MatMul", rows, "error_map"), columns)
        highest = self._node("map.highest", "ReduceMax", "anomaly_map", self._ints("axes.1.2.3", 1, 2, 3), keepdims=0)
        self._node("pred_score", "Add", highest, self._nothing("anomaly_map"))  # a maximum may lose a NaN

    def _nothing(self, x: str) -> str:
        """0 for each image of `x`, or NaN where not all of it is finite: (B,) of (B, ., ., .)."""
        total = self._node(f"{x}.total", "ReduceSum", x, self._ints("axes.1.2.3", 1, 2, 3), keepdims=0)
        return self._node(f"{x}.nothing", "Mul", total, self._constant("zero", np.zeros(())))

    def _nothing_of_draws(self, x: str) -> str:
        """0 for each image, or NaN where a draw of it in `x` (B·D,) is not finite: (B, 1, 1)."""
        apart = self._node(f"{x}.draws", "Reshape", x, self._ints("shape.squares", -1, self._folded.draws, 1))
        nothing = self._node(f"{x}.nothing", "Mul", apart, self._constant("zero", np.zeros(())))
        return self._node(f"{x}.nothing.image", "ReduceSum", nothing, self._ints("axis.1", 1), keepdims=1)

    def _halved(self, halvings: int) -> tuple[int, int]:
        """Height and width after so many halvings."""
        return self._size[0] >> halvings, self._size[1] >> halvings

    def _stored(self, name: str, x: str) -> str:
        """An array in the storage type."""
        return x if self._storage == self._float else self._node(f"{name}.stored", "Cast", x, to=self._storage)

    def _node(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node and its only output, both called `name`."""
        self._nodes.append(self._helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def _constant(self, name: str, value: npt.NDArray[Any], stored: bool = False) -> str:
        """A float constant; float32, or where `stored` in the storage type."""
        dtype = self._helper.tensor_dtype_to_np_dtype(self._storage if stored else self._float)
        return self._initializer(name, np.asarray(value).astype(dtype))

    def _ints(self, name: str, *values: int) -> str:
        return self._initializer(name, np.array(values, np.int64))

    def _initializer(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = self._numpy.from_array(np.asarray(value, order="C"), name)
        return name
