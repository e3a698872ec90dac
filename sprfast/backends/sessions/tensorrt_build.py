"""An ONNX graph as a TensorRT plan, in one way for TensorRT 10 and 11 and for TensorRT-RTX, which
needs no GPU to build.

Networks are strongly typed: each tensor has the type that the graph says, so that a builder cannot
take fewer bits for the parts that need them all; `check_pins` makes sure that the graph says so.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsInt

from sprfast.backends.sessions.session import Flavour, Progress
from sprfast.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt


IMAGE = "image"  # the input whose first dimension is the batch
BUCKETS = ((1, 1, 1), (2, 8, 8), (9, 32, 32))  # smallest, optimal and largest batch of each profile
KEPT_MESSAGES = 20  # warnings and errors, the last ones

_EXACT = {"FLOAT", "INT32", "INT64", "BOOL"}  # types of tensors where no bit may be lost


@dataclasses.dataclass(frozen=True)
class Options:
    """What a plan depends on beside the graph and the machine."""

    profiles: tuple[tuple[int, int, int], ...] = BUCKETS  # none where the graph fixes the batch
    workspace_bytes: int | None = None  # that a layer may use on the device; None: all there is
    stripped: bool = False  # without the weights, which `refitted` puts in; building such a plan needs a GPU


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """What `build` made."""

    plan: bytes
    summary: dict[str, Any]  # of the network, see `summary`
    timing_cache: bytes  # for the next `build` on this machine; empty where the flavour has none


def imported(flavour: Flavour) -> ModuleType:
    """The module; only after `cuda.unavailable` has been asked where it is to run something.

    Raises:
        BackendError: it is not installed or does not load.
    """
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"backend {flavour}: the module {flavour} does not load ({error}); install it again"
        ) from error


def build(
    onnx: bytes,
    flavour: Flavour,
    options: Options,
    *,
    timing_cache: bytes = b"",
    on_progress: Progress | None = None,
) -> Built:
    """Parse, check and build.

    Ctrl-C stops the building at its next step. What `on_progress` raises does too, and is raised
    from here.

    Args:
        onnx: a serialised model as `graph.onnx_model` makes it.
        flavour: of TensorRT.
        options: of the plan.
        timing_cache: of an earlier build with this version on this device, which the caller has
            checked; empty: none.
        on_progress: called after every step of every phase; phases are nested.

    Raises:
        BackendError: TensorRT cannot parse or build it, or the graph leaves to fewer than 32 bits
            what needs them.
    """
    if not TYPE_CHECKING:
        trt = imported(flavour)
    log, messages = logger(flavour)
    messages.clear()
    builder = trt.Builder(log)
    network = parsed(onnx, builder, flavour)
    check_pins(network)
    config = configured(builder, network, options, flavour)
    cache: trt.ITimingCache | None = None
    if flavour == "tensorrt":
        cache = config.create_timing_cache(timing_cache)  # an empty one where it cannot read the bytes
        config.set_timing_cache(cache, ignore_mismatch=False)
    stop: list[BaseException] = []  # why the build is to end early, if it is
    config.progress_monitor = _monitor(flavour, on_progress, stop)
    with _interrupts_stop(stop):
        plan: Any = builder.build_serialized_network(network, config)  # None where it failed
    if stop:
        raise stop[-1]
    if plan is None:
        raise BackendError(f"backend {flavour}: graph could not be built: {messages.reason()}")
    return Built(bytes(plan), summary(network, options.profiles), bytes(cache.serialize()) if cache else b"")


def parsed(onnx: bytes, builder: trt.Builder, flavour: Flavour) -> trt.INetworkDefinition:
    """The graph as a strongly typed network.

    Raises:
        BackendError: TensorRT cannot parse it; the message names the node.
    """
    if not TYPE_CHECKING:
        trt = imported(flavour)
    # 10 makes weakly typed networks unless told; 11 and RTX know no others and ignore the flag
    known = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if known else 0)
    parser = trt.OnnxParser(network, logger(flavour)[0])
    if not parser.parse(onnx):
        raise BackendError(f"backend {flavour}: graph could not be parsed: {_parser_errors(parser)}")
    return network


def check_pins(network: trt.INetworkDefinition) -> None:
    """Normalisations, what comes before the first and what comes after the last are float32.

    That is each normalisation with its scale and shift, the perturbation and the first convolution,
    the head, the residual and the maps.

    Raises:
        BackendError: one of them is not; the message names the layer.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    normalisations = [layer for layer in layers if layer.type.name == "NORMALIZATION"]
    if not normalisations:
        raise BackendError("graph: has no normalisation that TensorRT knows as one; export the model again")
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    made_by = {tensor.name: [layer] for layer in layers for tensor in _results(layer)}
    read_by: dict[str, list[trt.ILayer]] = collections.defaultdict(list)
    for layer in layers:
        for tensor in _operands(layer):
            read_by[tensor.name].append(layer)
    pinned = [*normalisations, *_reached(inputs, read_by, _results), *_reached(outputs, made_by, _operands)]
    for layer in pinned:
        for tensor in (*_operands(layer), *_results(layer)):
            if tensor.dtype.name not in _EXACT:
                raise BackendError(
                    f"graph: layer {layer.name} has {tensor.name} in {tensor.dtype.name}, where float32 is needed; "
                    f"export the model again"
                )


def summary(network: trt.INetworkDefinition, profiles: tuple[tuple[int, int, int], ...]) -> dict[str, Any]:
    """What a network is made of, as plain values: layers by kind, results by type, inputs and
    outputs, and shapes of the profiles.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "layers": dict(collections.Counter(layer.type.name for layer in layers)),
        "types": dict(collections.Counter(tensor.dtype.name for layer in layers for tensor in _results(layer))),
        "inputs": {tensor.name: _description(tensor) for tensor in inputs},
        "outputs": {tensor.name: _description(tensor) for tensor in outputs},
        "profiles": [[[batch, *_image_shape(network)] for batch in sizes] for sizes in profiles],
    }


def configured(
    builder: trt.Builder, network: trt.INetworkDefinition, options: Options, flavour: Flavour
) -> trt.IBuilderConfig:
    """How the builder is to build.

    Raises:
        BackendError: a profile is not one for this network.
    """
    if not TYPE_CHECKING:
        trt = imported(flavour)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is what the definition computes in
    config.set_flag(trt.BuilderFlag.STRICT_NANS)  # 0·NaN is not 0: that is how a score says that it is none
    if flavour == "tensorrt_rtx":
        # the session gives the memory, which captured graphs need, by the release notes of 1.2; the
        # signatures are those of TensorRT, which has no such flag
        flags: Any = trt.BuilderFlag
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT)  # REFIT_IDENTICAL would take the weights of this model only
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    shape = _image_shape(network)
    for sizes in options.profiles:
        profile = builder.create_optimization_profile()
        smallest, optimal, largest = (trt.Dims([batch, *shape]) for batch in sizes)
        profile.set_shape(IMAGE, smallest, optimal, largest)
        if config.add_optimization_profile(profile) < 0:
            reason = logger(flavour)[1].reason()
            raise BackendError(f"backend {flavour}: batches of {sizes} images are no profile of this graph: {reason}")
    return config


def refitted(engine: trt.ICudaEngine, onnx: bytes, flavour: Flavour) -> None:
    """Put a graph's weights into an engine whose plan was stripped.

    Raises:
        BackendError: a weight is missing or does not fit.
    """
    if not TYPE_CHECKING:
        trt = imported(flavour)
    log, messages = logger(flavour)
    messages.clear()
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(onnx):
        raise BackendError(f"backend {flavour}: the weights could not be put into the plan: {_parser_errors(parser)}")
    if missing := refitter.get_missing_weights():
        raise BackendError(
            f"backend {flavour}: the graph lacks {len(missing)} weights that the plan needs, {missing[0]} among them"
        )
    if not refitter.refit_cuda_engine():
        raise BackendError(f"backend {flavour}: the weights could not be put into the plan: {messages.reason()}")


class Messages(collections.deque[tuple[bool, str]]):
    """The last warnings and errors of TensorRT: whether it is an error, and its text.

    They are cleared before something of which `reason` may be asked.
    """

    def reason(self) -> str:
        """The last errors, or where there are none the last warnings, in one line."""
        kept = list(self)
        texts = [text for is_error, text in kept if is_error] or [text for _, text in kept]
        return "; ".join(texts[-2:]) or "it gave no reason"


@functools.cache
def logger(flavour: Flavour) -> tuple[trt.ILogger, Messages]:
    """The process's one logger, since TensorRT stays with the first, and what it keeps."""
    if not TYPE_CHECKING:
        trt = imported(flavour)
    errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    messages = Messages(maxlen=KEPT_MESSAGES)

    class _Log(trt.ILogger):
        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in errors or severity == trt.ILogger.Severity.WARNING:
                messages.append((severity in errors, " ".join(msg.split())))

    return _Log(), messages


def _monitor(flavour: Flavour, on_progress: Progress | None, stop: list[BaseException]) -> trt.IProgressMonitor:
    """Tells how far a build is, and ends it at its next step once there is a reason."""
    if not TYPE_CHECKING:
        trt = imported(flavour)
    steps: dict[str, int] = {}

    class _Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            steps[phase_name] = int(num_steps)

        def phase_finish(self, phase_name: str) -> None:
            if count := steps.pop(phase_name, 0):
                told(phase_name, count, count)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            done = int(step) + 1
            if done < steps.get(phase_name, 0):  # the last one is told when the phase ends
                told(phase_name, done, steps[phase_name])
            return not stop

    def told(phase: str, done: int, count: int) -> None:
        if on_progress is not None and not stop:
            try:
                on_progress(phase, done, count)
            except BaseException as error:  # may not pass through the builder, which is C++
                stop.append(error)

    return _Monitor()


@contextlib.contextmanager
def _interrupts_stop(stop: list[BaseException]) -> Iterator[None]:
    """Ctrl-C asks the builder to stop: no KeyboardInterrupt may pass through its C++."""

    def interrupt(number: int, frame: object) -> None:
        stop.append(KeyboardInterrupt())

    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser_errors(parser: trt.OnnxParser | trt.OnnxParserRefitter) -> str:
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node {error.node_name()} ({error.node_operator()}): " if error.node() >= 0 else ""
        texts.append(f"{node}{' '.join(error.desc().split())}")
    return "; ".join(texts) or "the parser gave no reason"


def _reached(
    tensors: Iterable[trt.ITensor],
    neighbours: dict[str, list[trt.ILayer]],
    onward: Callable[[trt.ILayer], list[trt.ITensor]],
) -> Iterator[trt.ILayer]:
    """Layers next to the tensors, and on from them up to a normalisation."""
    ahead, seen = list(tensors), set[str]()
    while ahead:
        for layer in neighbours.get(ahead.pop().name, []):
            if layer.name not in seen and layer.type.name != "NORMALIZATION":
                seen.add(layer.name)
                ahead += onward(layer)
                yield layer


def _operands(layer: trt.ILayer) -> list[trt.ITensor]:
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in found if tensor is not None]  # an operand may be left out


def _results(layer: trt.ILayer) -> list[trt.ITensor]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def _description(tensor: trt.ITensor) -> dict[str, Any]:
    return {"type": tensor.dtype.name, "shape": _shape(tensor)}


def _shape(tensor: trt.ITensor) -> list[int]:
    return [tensor.shape[index] for index in range(len(tensor.shape))]


def _image_shape(network: trt.INetworkDefinition) -> list[int]:
    """Channels, height and width."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    return next(_shape(tensor)[1:] for tensor in inputs if tensor.name == IMAGE)
