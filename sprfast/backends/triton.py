"""The network through our Triton kernels: library convolutions, and everything between them fused.

In TRITON_INTERPRET=1 the kernels run on a CPU, slowly: for checks without a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprfast.backends.tensors import inputs
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold
from sprfast.method import scoring
from sprfast.method.folded import Array, Block, ConvNorm, FoldedModel

if TYPE_CHECKING:
    from sprfast.kernels.triton.launch import Launch

STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NOT_INSTALLED = "Triton is not installed; it comes with the CUDA build of torch on Linux, or: pip install triton"


class TritonBackend:
    """Maps by fused kernels, launched one after another; feature maps are stored in `precision`.

    All draws of all images go through as one batch. Nothing is shared between calls but constants,
    so threads and streams do not meet. Our kernels give a sample the same bits alone and in a
    batch; whether the convolutions do is up to the library.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        self.device = device
        self._network = network_on(model, device, precision)
        if device.type == "cuda":
            with refusing(), on(device):
                self._network.self_test(model.preprocessing.size, model.preprocessing.size)

    @staticmethod
    def unavailable() -> str | None:
        """None where kernels can run: with Triton, on a CUDA device or in Triton's interpreter."""
        return missing()

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps; see `registry.Backend`."""
        x, z = inputs(x, noise, self.device)
        with refusing(), on(self.device):
            if self.device.type == "cuda":
                self._network.self_test(x.shape[2], x.shape[3])
            return self._network.maps(x, z, self._network.workspace(x.shape[0], x.shape[2], x.shape[3]))


class FusedUNet:
    """A folded model on a device, run through the operators of `sprfast.kernels`.

    Args:
        folded: in float32.
        device: where it runs.
        storage: type of the feature maps and of the convolutions' weights.
        operators: `sprfast.kernels`, or anything with its functions, such as `kernels.reference`.
        benchmark: let cuDNN time its algorithms on the first convolution of each shape.
    """

    def __init__(
        self,
        folded: FoldedModel,
        device: torch.device,
        storage: torch.dtype,
        operators: Any = kernels,
        benchmark: bool = False,
    ) -> None:
        self._operators = operators
        self._storage = storage
        self._device = device
        self._groups = folded.groups
        self._convolve = _convolution(device, benchmark)
        self._blocks = {name: _moved(block, device, storage) for name, block in folded.blocks.items()}
        self._first = reference.pack_weight(torch.tensor(folded.blocks["inc"].first.weight)).to(device)
        self._head_weight, self._head_bias = (
            torch.tensor(value, device=device) for value in (folded.head_weight, folded.head_bias)
        )
        self._std, self._scale = (torch.tensor(value, device=device) for value in (folded.std, folded.scale))
        self.draws = folded.draws
        self._tested: set[tuple[int, int]] = set()
        # by resolution, H down to H // 16
        self._channels = tuple(folded.base_width * factor for factor in (1, 2, 4, 8, 8))

    def workspace(self, images: int, height: int, width: int) -> Workspace:
        """Uninitialised memory for this many images of this size.

        From torch's allocator, which keeps it for the next call on the same stream, or puts it into
        the graph's pool while one is captured.
        """
        samples = images * self.draws

        def empty(channels: int, level: int) -> Tensor:
            shape = (samples, channels, height >> level, width >> level)
            return torch.empty(shape, dtype=self._storage, device=self._device, memory_format=torch.channels_last)

        c = self._channels
        return Workspace(
            empty(c[0], 0),
            tuple(empty(c[level], level) for level in range(5)),
            tuple(empty(2 * c[level], level) for level in range(4)),
            tuple(empty(c[level], level + 1) for level in range(4)),
        )

    def maps(self, x: Tensor, z: Tensor, space: Workspace) -> tuple[Tensor, Tensor]:
        """Error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256) in new memory.

        Args:
            x: (B, 3, H, W) float32, contiguous.
            z: (D, 1 or B, 3, H, W) float32, contiguous images.
            space: for B images of this size.
        """
        errors = self.error_map(x, z, space)
        rows, columns = (scoring.smoothing_matrix(size, self._device) for size in x.shape[2:])
        return errors, self._operators.anomaly_map(errors, rows, columns)

    def error_map(self, x: Tensor, z: Tensor, space: Workspace) -> Tensor:
        """(B, 1, H, W); args as in `maps`."""
        operators, inc = self._operators, self._blocks["inc"]
        norm = inc.first
        affine = operators.perturb_conv3x3(
            x, z, self._std, self._first, norm.bias, norm.gamma, norm.beta, self._groups, space.first
        )
        operators.affine_swish(space.first, affine, space.activations[0])
        raw, affine = self._second(inc, space.activations[0])
        for level, (above, name) in enumerate(itertools.pairwise(("inc", "down1", "down2", "down3", "down4"))):
            operators.affine_swish_pool(
                raw, affine, self._blocks[above].embedding, space.skip(level), space.pooled[level]
            )
            raw, affine = self._double(self._blocks[name], space.pooled[level], space.activations[level + 1])
        for level, (below, name) in zip(
            (3, 2, 1, 0), itertools.pairwise(("down4", "up1", "up2", "up3", "up4")), strict=True
        ):
            operators.affine_swish_up2(raw, affine, self._blocks[below].embedding, space.upsampled(level))
            raw, affine = self._double(self._blocks[name], space.joined[level], space.activations[level])
        return operators.affine_swish_head(raw, affine, self._head_weight, self._head_bias, z, self._scale)  # type: ignore[no-any-return]

    def self_test(self, height: int, width: int) -> None:
        """Every kernel configuration that images of this size need, against its reference on fresh
        random data.

        Once a size: a second call does nothing.

        Raises:
            kernels.self_test.SelfTestError: one computes something else.
        """
        from sprfast.kernels.triton.self_test import SelfTest

        if (height, width) in self._tested:
            return
        checking = copy.copy(self)
        checking._operators = SelfTest()
        x = torch.zeros(1, 3, height, width, dtype=torch.float32, device=self._device)
        z = torch.zeros(self.draws, 1, 3, height, width, dtype=torch.float32, device=self._device)
        checking.maps(x, z, self.workspace(1, height, width))
        self._tested.add((height, width))

    def _double(self, block: Block[Tensor], x: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Both convolutions of a block; the second one's raw output with the affine of its
        normalisation.
        """
        raw, norm = self._convolve(x, block.first.weight), block.first
        if raw.shape[2] * raw.shape[3] <= reference.ONE_PASS_PIXELS:
            self._operators.group_norm_swish(raw, norm.bias, norm.gamma, norm.beta, self._groups, activation)
        else:
            affine = self._operators.group_norm_affine(raw, norm.bias, norm.gamma, norm.beta, self._groups)
            self._operators.affine_swish(raw, affine, activation)
        return self._second(block, activation)

    def _second(self, block: Block[Tensor], activation: Tensor) -> tuple[Tensor, Tensor]:
        raw, norm = self._convolve(activation, block.second.weight), block.second
        return raw, self._operators.group_norm_affine(raw, norm.bias, norm.gamma, norm.beta, self._groups)


@dataclasses.dataclass(frozen=True, eq=False)
class Workspace:
    """The feature maps that our kernels write; those of the convolutions come from the allocator.

    A skip connection and the upsampled map beside it are the two halves of one tensor, each written
    in place: nothing is ever concatenated or copied.
    """

    first: Tensor  # the first convolution's output
    activations: tuple[Tensor, ...]  # between the convolutions of a block, by resolution; down and up use the same
    joined: tuple[Tensor, ...]  # skip | upsampled, by resolution
    pooled: tuple[Tensor, ...]  # input of the next resolution

    def skip(self, level: int) -> Tensor:
        """The first half of the channels."""
        return self.joined[level].chunk(2, dim=1)[0]

    def upsampled(self, level: int) -> Tensor:
        """The second half of the channels."""
        return self.joined[level].chunk(2, dim=1)[1]


def network_on(model: Model, device: torch.device, precision: Precision, benchmark: bool = False) -> FusedUNet:
    """The network of `model` through the Triton kernels.

    Raises:
        BackendError: the device cannot run them, or the kernels do not take this network.
    """
    if _interpreted() and device.type == "cuda":
        raise BackendError(
            "backend triton: TRITON_INTERPRET is set, which runs kernels on the CPU; unset it, or use --device cpu"
        )
    if not _interpreted() and device.type != "cuda":
        raise BackendError(
            f"backend triton: cannot run on {device}; use a CUDA device, or set TRITON_INTERPRET=1 for slow checks "
            f"on a CPU"
        )
    folded = fold(model)
    with refusing():
        launches(folded, precision, 1, model.preprocessing.size, model.preprocessing.size, 90)
    return FusedUNet(folded, device, STORAGE[precision], benchmark=benchmark)


def launches(
    folded: FoldedModel, precision: Precision, images: int, height: int, width: int, capability: int
) -> list[Launch]:
    """Every launch that scoring `images` images takes on this compute capability (90 for 9.0),
    without running any.

    Raises:
        launch.UnsupportedError: the kernels do not take this network or size.
    """
    from sprfast.kernels.triton.launch import recorded

    meta = torch.device("meta")
    network = FusedUNet(folded, meta, STORAGE[precision])
    with torch.inference_mode(), recorded(capability) as recording:
        x = torch.empty(images, 3, height, width, dtype=torch.float32, device=meta)
        z = torch.empty(network.draws, 1, 3, height, width, dtype=torch.float32, device=meta)
        network.maps(x, z, network.workspace(images, height, width))
    return recording


def missing() -> str | None:
    """Why kernels cannot run on this machine, or None."""
    if not _installed():
        return _NOT_INSTALLED
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA device here; set TRITON_INTERPRET=1 to run the kernels on the CPU, slowly, for checks"
    return None


def missing_compiler() -> str | None:
    """Why kernels cannot be compiled on this machine, or None; that takes no CUDA device."""
    if not _installed():
        return _NOT_INSTALLED
    return "TRITON_INTERPRET is set, and Triton's interpreter compiles nothing; unset it" if _interpreted() else None


def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    from sprfast.kernels.triton.launch import INTERPRETED

    return INTERPRETED


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device current, as Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what kernels cannot take, or compute wrongly, into a `BackendError`."""
    from sprfast.kernels.triton.launch import MissingConfigurationError, UnsupportedError
    from sprfast.kernels.triton.self_test import SelfTestError

    try:
        yield
    except (UnsupportedError, MissingConfigurationError, SelfTestError) as error:
        raise BackendError(f"backend triton: {error}") from error


def _convolution(device: torch.device, benchmark: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """A 3x3 convolution without bias, zero padding of one pixel, channels-last.

    On CUDA straight to cuDNN: TensorFloat-32 off and deterministic, whatever the process's global
    flags say.
    """
    if device.type == "cuda":
        return lambda x, weight: torch.ops.aten.cudnn_convolution(
            x, weight, [1, 1], [1, 1], [1, 1], 1, benchmark, True, False
        )
    return lambda x, weight: F.conv2d(x, weight, padding=1).contiguous(memory_format=torch.channels_last)


def _moved(block: Block[Array], device: torch.device, storage: torch.dtype) -> Block[Tensor]:
    """A block on the device, its convolutions' weights in the storage type and channels-last."""

    def moved(norm: ConvNorm[Array]) -> ConvNorm[Tensor]:
        weight = torch.tensor(norm.weight).to(device, storage, memory_format=torch.channels_last)
        return ConvNorm(weight, *(torch.tensor(value, device=device) for value in (norm.bias, norm.gamma, norm.beta)))

    embedding = None if block.embedding is None else torch.tensor(block.embedding, device=device)
    return Block(moved(block.first), moved(block.second), embedding)
