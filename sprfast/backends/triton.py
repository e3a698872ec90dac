"""The network through our Triton kernels: library convolutions, and everything between them fused.

In TRITON_INTERPRET=1 the kernels run on a CPU, slowly: for checks without a GPU.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sprfast.backends.convolved_draws import ConvolvedDraws
from sprfast.backends.tensors import parted
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold
from sprfast.method import scoring
from sprfast.method.anomaly_map import MAP_SIZE, reach
from sprfast.method.folded import BLOCKS, HALVINGS, SKIPS, Array, Block, ConvNorm, FoldedModel
from sprfast.system.libraries import require

if TYPE_CHECKING:
    from sprfast.kernels.triton.launch import Launch

_T = TypeVar("_T")

MAX_BOUND = 64  # lists of launches kept, one a shape; the least recently used is dropped
STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NOT_INSTALLED = "Triton is not installed; it comes with the CUDA build of torch on Linux, or: pip install triton"


class TritonBackend:
    """Maps by fused kernels, launched one after another; feature maps are stored in `precision`.

    All draws of all images go through as one batch. Calls share constants and lists of launches
    but no memory, so threads and streams do not meet. Our kernels give a sample the same bits alone
    and in a batch; whether the convolutions do is up to the library.

    One thread launches everything, each call on the stream of its caller. cuDNN does not promise
    that threads may run one plan of a convolution at once, so torch keeps plans by thread; with
    one thread there is a plan for each shape, however many threads call and however short they
    live.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "float32") -> None:
        self.device = device
        self._network = network_on(model, device, precision)
        self._draws = ConvolvedDraws(self._network, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sprfast-triton")
        # used on that thread only
        self._bound: collections.OrderedDict[tuple[Any, ...], Callable[..., tuple[Tensor, Tensor]]]
        self._bound = collections.OrderedDict()
        if device.type == "cuda":
            self._launched(self._network.self_test, model.preprocessing.size, model.preprocessing.size)

    @staticmethod
    def unavailable() -> str | None:
        """None where kernels can run: with Triton, on a CUDA device or in Triton's interpreter."""
        if reason := _unloadable():
            return reason
        if not _interpreted() and not torch.cuda.is_available():
            return "no CUDA device here; set TRITON_INTERPRET=1 to run the kernels on the CPU, slowly, for checks"
        return None

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps; see `registry.Backend`."""
        return self._launched(self._maps, x.to(self.device).contiguous(), noise)

    def _launched(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Do this on the thread that launches, on the caller's stream, and wait until all of it is
        launched.
        """
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def on_the_stream() -> _T:
            with torch.inference_mode(), running_on(self.device), torch.cuda.stream(stream):
                return work(*arguments)

        return self._thread.submit(on_the_stream).result()

    def _maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        given = (x, *self._draws.of(noise, x.shape[0]))
        key = tuple((each.shape, each.stride(), each.dtype, each.data_ptr() % 16 == 0) for each in given)
        if key not in self._bound:
            if self.device.type == "cuda":
                self._network.self_test(x.shape[2], x.shape[3])
            if len(self._bound) == MAX_BOUND:
                self._bound.popitem(last=False)
            self._bound[key] = self._network.bind(*given)
        self._bound.move_to_end(key)
        return self._bound[key](*given)


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
        self._groups, self._window = folded.groups, folded.window
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

    def blank(self, images: int, height: int, width: int, noises: int = 1) -> tuple[Tensor, Tensor]:
        """Zeros for the arguments of `maps`."""

        def zeros(*counts: int) -> Tensor:
            return torch.zeros(*counts, 3, height, width, dtype=torch.float32, device=self._device)

        return zeros(images), zeros(self.draws, noises)

    def maps(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256); args as in `result`."""
        noise = self.empty_noise(z)
        self.convolve_noise(z, noise)
        return parted(self.result(x, z, noise), *x.shape[2:])

    def empty_noise(self, z: Tensor) -> Tensor:
        """Memory for `convolve_noise`: (D or B·D, C, H, W) in the storage type."""
        shape = (z.shape[0] * z.shape[1], self._channels[0], *z.shape[3:])
        return torch.empty(shape, dtype=self._storage, device=self._device, memory_format=torch.channels_last)

    def convolve_noise(self, z: Tensor, out: Tensor) -> None:
        """What draws add to the first convolution, once for all images that share them.

        Args:
            z: as in `result`.
            out: as `empty_noise` makes it, written.
        """
        self._operators.noise_conv3x3(z, self._std, self._first, out)

    def result(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Both kinds of maps in one new tensor, which `parted` takes apart.

        Args:
            x: (B, 3, H, W) float32, contiguous.
            z: (D, 1 or B, 3, H, W) float32, contiguous images.
            noise: what `convolve_noise` makes of z.
        """
        return self._result(x, z, noise, *self.smoothing(x))

    def bind(self, x: Tensor, z: Tensor, noise: Tensor) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The maps of `result` for tensors with the shapes, strides and alignment of these, as a
        list of launches: the same bits, without the network's Python.

        Raises:
            launch.UnsupportedError: the kernels do not take them.
        """
        from sprfast.backends.launch_list import LaunchList

        def recorded(convolve: Callable[[Tensor, Tensor], Tensor], *tensors: Tensor) -> Tensor:
            network = copy.copy(self)
            network._device, network._convolve = torch.device("meta"), convolve
            return network._result(*tensors)

        bound = LaunchList(recorded, (x, z, noise, *self.smoothing(x)), self._convolve)
        return lambda x, z, noise: parted(bound(x, z, noise, *self.smoothing(x)), *x.shape[2:])

    def smoothing(self, x: Tensor) -> list[Tensor]:
        """The matrices of both sides of the anomaly maps of x (B, 3, H, W), for the current
        stream.
        """
        return [scoring.smoothing_matrix(size, self._device, self._window) for size in x.shape[2:]]

    def _result(self, x: Tensor, z: Tensor, noise: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        images, _, height, width = x.shape
        result = torch.empty(images * (height * width + MAP_SIZE**2), dtype=torch.float32, device=self._device)
        errors, anomaly_maps = parted(result, height, width)
        self.error_map(x, z, noise, errors)
        reached = max(reach(size, self._window) for size in (height, width))
        self._operators.anomaly_map(errors, rows, columns, reached, anomaly_maps)
        return result

    def error_map(self, x: Tensor, z: Tensor, noise: Tensor, out: Tensor) -> None:
        """Write the error maps to out (B, 1, H, W) float32; other args as in `result`.

        Memory comes from torch's allocator, which keeps it for the next call on the same stream, or
        puts it into the graph's pool while one is captured. A skip connection and the upsampled map
        beside it are the two halves of one tensor, each written in place: nothing is ever
        concatenated or copied.
        """
        samples, (height, width) = x.shape[0] * self.draws, x.shape[2:]

        def empty(channels: int, level: int) -> Tensor:
            shape = (samples, channels, height >> level, width >> level)
            return torch.empty(shape, dtype=self._storage, device=self._device, memory_format=torch.channels_last)

        channels = self._channels
        first = empty(channels[0], 0)
        activations = [empty(channels[level], level) for level in range(5)]  # down and up use the same
        joined = [empty(2 * channels[level], level) for level in range(4)]
        halves = [each.chunk(2, dim=1) for each in joined]
        pooled = [empty(channels[level], level + 1) for level in range(4)]

        arrived = torch.empty(samples + 2, dtype=torch.int32, device=self._device)
        operators, inc = self._operators, self._blocks["inc"]
        norm = inc.first
        affine = operators.perturb_conv3x3(
            x, noise, self._first, norm.bias, norm.gamma, norm.beta, self._groups, first, arrived
        )
        operators.affine_swish(first, affine, activations[0])
        raw, norm = self._convolve(activations[0], inc.second.weight), inc.second
        for before, name in itertools.pairwise(BLOCKS):
            level, embedding = HALVINGS[name], self._blocks[before].embedding
            if name in SKIPS:
                affine = operators.group_norm_affine(raw, norm.bias, norm.gamma, norm.beta, self._groups, arrived)
                operators.affine_swish_up2(raw, affine, embedding, halves[level][1])
                source = joined[level]
            else:
                self._norm("swish_pool", raw, norm, arrived, embedding, halves[level - 1][0], pooled[level - 1])
                source = pooled[level - 1]
            raw, norm = self._double(self._blocks[name], source, activations[level], arrived)
        self._norm("swish_head", raw, norm, arrived, self._head_weight, self._head_bias, z, self._scale, out)

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
        checking.maps(*self.blank(1, height, width))
        self._tested.add((height, width))

    def _double(
        self, block: Block[Tensor], x: Tensor, activation: Tensor, arrived: Tensor
    ) -> tuple[Tensor, ConvNorm[Tensor]]:
        """Both convolutions of a block: the second's raw output, and its normalisation."""
        raw, norm = self._convolve(x, block.first.weight), block.first
        if raw.shape[2] * raw.shape[3] <= reference.ONE_PASS_PIXELS:
            self._operators.group_norm_swish(raw, norm.bias, norm.gamma, norm.beta, self._groups, activation)
        else:
            self._norm("swish", raw, norm, arrived, activation)
        return self._convolve(activation, block.second.weight), block.second

    def _norm(self, ending: str, raw: Tensor, norm: ConvNorm[Tensor], arrived: Tensor, *rest: Tensor | None) -> None:
        """Normalise and do what `ending` says: in one launch where all its programs run at once,
        else in two.
        """
        from sprfast.kernels.triton import one_launch

        given = (raw, norm.bias, norm.gamma, norm.beta, self._groups, arrived)
        if one_launch.unsupported(raw) is None:
            getattr(self._operators, f"norm_{ending}")(*given, *rest)
        else:
            affine = self._operators.group_norm_affine(*given)
            getattr(self._operators, f"affine_{ending}")(raw, affine, *rest)


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
    with running_on(device):
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
        network.maps(*network.blank(images, height, width))
    return recording


def missing_compiler() -> str | None:
    """Why kernels cannot be compiled on this machine, or None; that takes no CUDA device."""
    if reason := _unloadable():
        return reason
    return "TRITON_INTERPRET is set, and Triton's interpreter compiles nothing; unset it" if _interpreted() else None


def _unloadable() -> str | None:
    """Why Triton cannot be imported, or None."""
    if importlib.util.find_spec("triton") is None:
        return _NOT_INSTALLED
    try:
        require("triton", "triton")
    except BackendError as error:
        return str(error)
    return None


def _interpreted() -> bool:
    from sprfast.kernels.triton.launch import INTERPRETED

    return INTERPRETED


@contextlib.contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Make a CUDA device current, as Triton launches on the current one, and turn what kernels
    cannot take, or compute wrongly, into a `BackendError`.
    """
    from sprfast.kernels.triton.launch import MissingConfigurationError, UnsupportedError
    from sprfast.kernels.triton.self_test import SelfTestError

    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
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
