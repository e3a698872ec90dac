"""What a bench compares: our backends, the published pipeline, and the plain definition in
channels-last, in bfloat16, compiled.

Also the truth that all of them are compared with.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sprfast.backends import registry
from sprfast.backends.eager import EagerBackend
from sprfast.bench.core.heat_map import published_heat_map
from sprfast.config import Precision, Schedule
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import QUANTIZED_TOLERANCE
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.method import scoring, sde, unet

# (B, 3, H, W) float32 in [-1, 1] to error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256), all
# on one device.
Maps = Callable[[Tensor], tuple[Tensor, Tensor]]
# (B, D, 3, H, W) float32 perturbed images, D draws each, to std(t)·s of the same shape: the network
# alone.
Network = Callable[[Tensor], Tensor]
# model and its noise (one (K, 1, 3, H, W) a level), on the device
Build = Callable[[Model, Sequence[Tensor], torch.device], Maps]
BASELINE = "published"
TRUTH = "the plain definition in float64 on the CPU"  # `Definition`
T = TypeVar("T")
# Relative errors that a candidate's maps may have, by the precision of its convolutions.
TOLERANCES = {
    "float32": 1e-4,
    "tf32": 3e-2,
    "bfloat16": 3e-2,
    "float16": 3e-2,
    "int8": QUANTIZED_TOLERANCE["int8"],
}
EXACT = ("float32", "tf32")  # of `TOLERANCES`, those whose verdicts are not compared with float32's


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute the maps of a model."""

    name: str
    description: str
    build: Build
    precision: str = "float32"  # that is asked for the convolutions, one of `TOLERANCES`
    # model, times (D,) of the draws, device; None where the network cannot be run apart from what
    # surrounds it
    network: Callable[[Model, Tensor, torch.device], Network] | None = None
    ours: bool = False  # one of our backends
    own_tolerance: float | None = None  # in place of that of `precision`
    # the precision of what was built last, as its library tells once it has answered; None: it
    # does not
    ran: Callable[[], str | None] = lambda: None
    # the same with its scales from inputs (N, ...) of N calls, one image each; None: it has no
    # scales
    calibrated: Callable[[Tensor], Candidate] | None = None

    @property
    def tolerance(self) -> float:
        """The relative error that its maps may have."""
        return TOLERANCES[self.precision] if self.own_tolerance is None else self.own_tolerance

    def on(self, inputs: Tensor) -> Candidate:
        """What is to be built where inputs are like these: `calibrated` where it is not None."""
        return self if self.calibrated is None else self.calibrated(inputs)


class Definition:
    """The definition in float64 on the CPU, whatever computes beside it: the truth that results are
    compared with.

    A network as `scoring.ScoreNetwork`. Samples go through it one by one, since PyTorch's float64
    convolution takes nine times the memory of its input.
    """

    def __init__(self, model: Model) -> None:
        self._network = unet.from_weights(
            model.network, {name: value.double() for name, value in model.weights.items()}
        )
        self._mode = model.scoring_mode

    @torch.inference_mode()
    def scaled_score(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's undivided output for (N, 3, H, W) at the times (N,)."""
        samples = zip(x.double(), t.double(), strict=True)
        return torch.cat([self._network.scaled_score(image[None], time[None]) for image, time in samples])

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error maps and anomaly maps of (B, 3, H, W) images; `noise` is one (K, 1, 3, H, W) tensor
        a level.
        """
        errors = scoring.error_map(self, x.double(), self._mode.schedule, [z.double() for z in noise])
        rows, columns = (scoring.smoothing_matrix(size, x.device, self._mode.window).double() for size in x.shape[2:])
        return errors, rows @ errors @ columns.mT


def network_of(
    model: Model, device: torch.device, memory_format: torch.memory_format = torch.preserve_format
) -> unet.ScoreUNet:
    """The model's network with its weights on `device`."""
    network = unet.from_weights(model.network, {name: value.to(device) for name, value in model.weights.items()})
    return network.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def draw_times(schedule: Schedule) -> Tensor:
    """(D,) float32: the time of every draw, those of the first level first."""
    return torch.tensor([level.t for level in schedule.levels for _ in range(level.draws)])


def plain(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """The definition as it is written, with the network in channels-last."""
    network = network_of(model, device, torch.channels_last)

    @torch.inference_mode()
    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        errors = scoring.error_map(network, x, model.schedule, noise)
        return errors, scoring.anomaly_map(errors)

    return maps


def published(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """The published test script's arithmetic: float32, contiguous, one pass a draw, no fused swish.

    Its network divides by std and the script multiplies by std² again; the heat map is upsampled
    and averaged on images. Where the script's cost depends on details (zero-width padding, copies
    to the host, drawing of noise), this peer has the cheaper form.
    """
    network = _with_split_swish(network_of(model, device))

    @torch.no_grad()
    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        errors = torch.zeros_like(x[:, :1])
        for level, weight, draws in zip(model.schedule.levels, model.schedule.weights, noise, strict=True):
            t = torch.full((x.shape[0],), level.t, dtype=x.dtype, device=device)
            std = sde.std(t)[:, None, None, None]
            for z in draws:
                n = z * std
                restored = network(x + n, t) * std**2 + n
                errors += weight / level.draws * (restored**2).mean(1, keepdim=True)
        return errors, published_heat_map(errors)

    return maps


def plain_network(model: Model, times: Tensor, device: torch.device) -> Network:
    """The network of `plain`: all draws of all images in one batch."""
    return _all_draws(network_of(model, device, torch.channels_last), times.to(device))


def _all_draws(network: scoring.ScoreNetwork, times: Tensor) -> Network:
    @torch.inference_mode()
    def scores(x: Tensor) -> Tensor:
        return _in_one_batch(network, x, times)

    return scores


def published_network(model: Model, times: Tensor, device: torch.device) -> Network:
    """The network of `published`: one pass a draw. Its output, divided by std, is multiplied again
    for comparison.
    """
    network = _with_split_swish(network_of(model, device))
    levels = [(torch.full((1,), float(t), device=device), sde.std(float(t))) for t in times]

    @torch.no_grad()
    def scores(x: Tensor) -> Tensor:
        draws = zip(levels, x.unbind(1), strict=True)
        return torch.stack([network(images, t.expand(images.shape[0])) * std for (t, std), images in draws], dim=1)

    return scores


def _with_tf32(build: Callable[..., Callable[[Tensor], T]]) -> Callable[..., Callable[[Tensor], T]]:
    """The same with PyTorch's default for cuDNN, which the script does not change: convolutions may
    be TensorFloat-32.
    """

    def built(*given: Any) -> Callable[[Tensor], T]:
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True)
        return flags(build(*given))

    return built


published_tf32 = _with_tf32(published)
published_tf32_network = _with_tf32(published_network)


def bfloat16(
    model: Model, noise: Sequence[Tensor], device: torch.device, compiler: Callable[..., Any] | None = None
) -> Maps:
    """The definition with convolutions and normalisations in bfloat16, channels-last, all draws in
    one batch.

    Time embedding, perturbation and residual stay in float32; cuDNN times its algorithms on the
    first call. `compiler`, such as `torch.compile`, is given the whole function from images to both
    maps.
    """
    network = _Bfloat16Network(network_of(model, device, torch.channels_last))

    def compute(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        errors = scoring.error_map(network, x, model.schedule, noise)
        return errors, rows @ errors @ columns.mT

    run = compute if compiler is None else compiler(compute)

    @torch.inference_mode()
    def maps(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (scoring.smoothing_matrix(size, device) for size in x.shape[2:])
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return run(x, rows, columns)

    return maps


def compiled_bfloat16(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """`bfloat16` through torch.compile with autotuning and CUDA graphs; the maps last until the
    next call.

    Raises:
        BackendError: the device is not a CUDA device.
    """
    if device.type != "cuda":
        raise BackendError("torch.compile is measured on CUDA devices only")
    torch.compiler.reset()
    compiler = functools.partial(torch.compile, mode="max-autotune", dynamic=False, fullgraph=True)
    return bfloat16(model, noise, device, compiler)


def cpu_bfloat16(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
    """`bfloat16` on a CPU.

    Raises:
        BackendError: this processor has no bfloat16 instructions.
    """
    _require_bfloat16()
    return bfloat16(model, noise, device)


def cpu_bfloat16_network(model: Model, times: Tensor, device: torch.device) -> Network:
    """The network of `cpu_bfloat16`; it raises the same."""
    _require_bfloat16()
    return _all_draws(_Bfloat16Network(network_of(model, device, torch.channels_last)), times.to(device))


def _require_bfloat16() -> None:
    # without them oneDNN emulates bfloat16 on AVX-512, slower than float32
    x86 = platform.machine() in {"x86_64", "AMD64"}
    has = torch.cpu._is_avx512_bf16_supported if x86 else torch.ops.mkldnn._is_mkldnn_bf16_supported
    if not has():
        raise BackendError("torch_bf16 needs a processor with bfloat16 instructions, which this one has not")


class _Bfloat16Network:
    def __init__(self, network: unet.ScoreUNet) -> None:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
                module.to(torch.bfloat16)
        self._network = network

    def scaled_score(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        return self._network.scaled_score(x, t).float()


def backend(name: str, precision: Precision = "float32") -> Build:
    """A builder for our backend `name`."""

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        return functools.partial(registry.create(name, model, device, precision).maps, noise=noise)

    return build


def eager_network(model: Model, times: Tensor, device: torch.device) -> Network:
    """The network of our backend eager: on a CPU image by image, on CUDA all at once and without
    TensorFloat-32.
    """
    network, times = EagerBackend(model, device).network, times.to(device)

    @torch.inference_mode()
    def scores(x: Tensor) -> Tensor:
        if device.type == "cpu":
            return torch.stack([network.scaled_score(draws, times) for draws in x])
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return _in_one_batch(network, x, times)

    return scores


class _Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def _with_split_swish(network: unet.ScoreUNet) -> unet.ScoreUNet:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, _Swish())
    return network


def _in_one_batch(network: scoring.ScoreNetwork, x: Tensor, times: Tensor) -> Tensor:
    scores = network.scaled_score(x.flatten(0, 1), times.repeat(x.shape[0]))
    return scores.unflatten(0, x.shape[:2])  # type: ignore[no-any-return,no-untyped-call]


CANDIDATES = (
    Candidate(
        BASELINE,
        "the published pipeline: float32, contiguous, one pass a draw, x * sigmoid(x), division and multiplication "
        "by std, upsampling and 31x31 average pooling",
        published,
        network=published_network,
    ),
    Candidate(
        "channels_last",
        "the plain definition: network in channels-last, all draws in one batch",
        plain,
        network=plain_network,
    ),
    Candidate("eager", "sprfast, backend eager", backend("eager"), network=eager_network, ours=True),
)
# "onnxruntime" is the peer, in `libraries`. The session opens with the first image, so that this
# counts as its first call.
ONNX_PLAN = Candidate(
    "onnx_plan", "sprfast, backend onnxruntime: the folded plan as an ONNX graph", backend("onnxruntime"), ours=True
)


def cpu() -> Candidate:
    """Our backend cpu, which names its instruction set; where it cannot run, building it raises
    BackendError with the reason.
    """
    reason = registry.unavailable("cpu")
    chosen = "" if reason else f", {library.instruction_set()}"
    return Candidate("cpu", f"sprfast, backend cpu: our CPU kernels{chosen}", backend("cpu"), ours=True)


# on processors whose bfloat16 our kernels have no use for, building it raises BackendError with the
# reason
CPU_BFLOAT16 = Candidate(
    "cpu_bf16",
    "sprfast, backend cpu: our CPU kernels in bfloat16",
    backend("cpu", "bfloat16"),
    "bfloat16",
    ours=True,
)
TORCH_BFLOAT16 = Candidate(
    "torch_bf16",
    "the plain definition in channels-last, convolutions and normalisations in bfloat16",
    cpu_bfloat16,
    "bfloat16",
    network=cpu_bfloat16_network,
)


def candidates(device: torch.device) -> tuple[Candidate, ...]:
    """What `sprfast bench` compares on this device, with our backends for it; on CUDA in the
    precisions that they are meant for.

    The peers run with PyTorch's defaults, which on CUDA are TensorFloat-32 convolutions.
    """
    if device.type != "cuda":
        return (*CANDIDATES, cpu(), ONNX_PLAN, CPU_BFLOAT16, TORCH_BFLOAT16)
    found = [
        dataclasses.replace(CANDIDATES[0], build=published_tf32, network=published_tf32_network, precision="tf32"),
        dataclasses.replace(CANDIDATES[1], precision="tf32"),
        CANDIDATES[2],
    ]
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for name in ("triton", "cuda_graph"):
        for precision in precisions if registry.unavailable(name) is None else ():
            description = f"sprfast, backend {name}, {precision}"
            build = backend(name, precision)
            found.append(Candidate(f"{name}_{precision}", description, build, precision, ours=True))
    return tuple(found)
