# Made by tests/typings/trim.py: what sprfast uses of TensorRT 10.13.
from __future__ import annotations

import typing

import typing_extensions

class DataType:
    BF16: typing.ClassVar[DataType]
    BOOL: typing.ClassVar[DataType]
    E8M0: typing.ClassVar[DataType]
    FLOAT: typing.ClassVar[DataType]
    FP4: typing.ClassVar[DataType]
    FP8: typing.ClassVar[DataType]
    HALF: typing.ClassVar[DataType]
    INT32: typing.ClassVar[DataType]
    INT4: typing.ClassVar[DataType]
    INT64: typing.ClassVar[DataType]
    INT8: typing.ClassVar[DataType]
    UINT8: typing.ClassVar[DataType]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class Dims:
    MAX_DIMS: typing.ClassVar[int]

    @typing.overload
    def __getitem__(self, arg0: int) -> int: ...

    @typing.overload
    def __getitem__(self, arg0: slice) -> tuple[typing.Any, ...]: ...

    @typing.overload
    def __init__(self) -> None: ...

    @typing.overload
    def __init__(self, shape: list[int]) -> None: ...

    def __len__(self) -> int: ...

class IHostMemory:

    @property
    def dtype(self) -> DataType: ...

    @property
    def nbytes(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...

class LayerType:
    ACTIVATION: typing.ClassVar[LayerType]
    ASSERTION: typing.ClassVar[LayerType]
    CAST: typing.ClassVar[LayerType]
    CONCATENATION: typing.ClassVar[LayerType]
    CONDITION: typing.ClassVar[LayerType]
    CONDITIONAL_INPUT: typing.ClassVar[LayerType]
    CONDITIONAL_OUTPUT: typing.ClassVar[LayerType]
    CONSTANT: typing.ClassVar[LayerType]
    CONVOLUTION: typing.ClassVar[LayerType]
    CUMULATIVE: typing.ClassVar[LayerType]
    DECONVOLUTION: typing.ClassVar[LayerType]
    DEQUANTIZE: typing.ClassVar[LayerType]
    DYNAMIC_QUANTIZE: typing.ClassVar[LayerType]
    EINSUM: typing.ClassVar[LayerType]
    ELEMENTWISE: typing.ClassVar[LayerType]
    FILL: typing.ClassVar[LayerType]
    GATHER: typing.ClassVar[LayerType]
    GRID_SAMPLE: typing.ClassVar[LayerType]
    IDENTITY: typing.ClassVar[LayerType]
    ITERATOR: typing.ClassVar[LayerType]
    LOOP_OUTPUT: typing.ClassVar[LayerType]
    LRN: typing.ClassVar[LayerType]
    MATRIX_MULTIPLY: typing.ClassVar[LayerType]
    NMS: typing.ClassVar[LayerType]
    NON_ZERO: typing.ClassVar[LayerType]
    NORMALIZATION: typing.ClassVar[LayerType]
    ONE_HOT: typing.ClassVar[LayerType]
    PADDING: typing.ClassVar[LayerType]
    PARAMETRIC_RELU: typing.ClassVar[LayerType]
    PLUGIN: typing.ClassVar[LayerType]
    PLUGIN_V2: typing.ClassVar[LayerType]
    PLUGIN_V3: typing.ClassVar[LayerType]
    POOLING: typing.ClassVar[LayerType]
    QUANTIZE: typing.ClassVar[LayerType]
    RAGGED_SOFTMAX: typing.ClassVar[LayerType]
    RECURRENCE: typing.ClassVar[LayerType]
    REDUCE: typing.ClassVar[LayerType]
    RESIZE: typing.ClassVar[LayerType]
    REVERSE_SEQUENCE: typing.ClassVar[LayerType]
    SCALE: typing.ClassVar[LayerType]
    SCATTER: typing.ClassVar[LayerType]
    SELECT: typing.ClassVar[LayerType]
    SHAPE: typing.ClassVar[LayerType]
    SHUFFLE: typing.ClassVar[LayerType]
    SLICE: typing.ClassVar[LayerType]
    SOFTMAX: typing.ClassVar[LayerType]
    SQUEEZE: typing.ClassVar[LayerType]
    TOPK: typing.ClassVar[LayerType]
    TRIP_LIMIT: typing.ClassVar[LayerType]
    UNARY: typing.ClassVar[LayerType]
    UNSQUEEZE: typing.ClassVar[LayerType]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class ITensor:
    dtype: DataType
    name: str
    shape: Dims

class ILayer:
    metadata: str
    name: str
    precision: DataType

    def get_input(self, index: int) -> ITensor: ...

    def get_output(self, index: int) -> ITensor: ...

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    @property
    def type(self) -> LayerType: ...

class INetworkDefinition:
    name: str

    def __getitem__(self, arg0: int) -> ILayer: ...

    def __len__(self) -> int: ...

    def get_input(self, index: int) -> ITensor: ...

    def get_layer(self, index: int) -> ILayer: ...

    def get_output(self, index: int) -> ITensor: ...

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

class ILogger:

    class Severity:
        ERROR: typing.ClassVar[ILogger.Severity]
        INFO: typing.ClassVar[ILogger.Severity]
        INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
        VERBOSE: typing.ClassVar[ILogger.Severity]
        WARNING: typing.ClassVar[ILogger.Severity]

        def __init__(self, value: int) -> None: ...

        def __int__(self) -> int: ...

        @property
        def name(self) -> str: ...
    ERROR: typing.ClassVar[ILogger.Severity]
    INFO: typing.ClassVar[ILogger.Severity]
    INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
    VERBOSE: typing.ClassVar[ILogger.Severity]
    WARNING: typing.ClassVar[ILogger.Severity]

    def __init__(self) -> None: ...

    def log(self, severity: ILogger.Severity, msg: str) -> None: ...

class IOptimizationProfile:

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None: ...

class IProgressMonitor:

    def __init__(self) -> None: ...

    def phase_finish(self, phase_name: str) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

class IExecutionContext:
    name: str

    def execute_async_v3(self, stream_handle: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    @typing.overload
    def set_input_shape(self, name: str, shape: tuple[typing.Any, ...]) -> bool: ...

    @typing.overload
    def set_input_shape(self, name: str, shape: list[typing.Any]) -> bool: ...

    @typing.overload
    def set_input_shape(self, name: str, shape: Dims) -> bool: ...

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

class ExecutionContextAllocationStrategy:
    ON_PROFILE_CHANGE: typing.ClassVar[ExecutionContextAllocationStrategy]
    STATIC: typing.ClassVar[ExecutionContextAllocationStrategy]
    USER_MANAGED: typing.ClassVar[ExecutionContextAllocationStrategy]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class IRuntimeConfig:
    pass

class ICudaEngine:

    def __getitem__(self, arg0: int) -> str: ...

    @typing.overload
    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy=...) -> IExecutionContext: ...

    @typing.overload
    def create_execution_context(self, runtime_config: IRuntimeConfig=...) -> IExecutionContext: ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...

    def serialize(self) -> IHostMemory: ...

    @property
    def name(self) -> str: ...

    @property
    def num_layers(self) -> int: ...

class IStreamReader:

    def __init__(self) -> None: ...

class IStreamReaderV2:

    def __init__(self) -> None: ...

class BuilderFlag:
    BF16: typing.ClassVar[BuilderFlag]
    DEBUG: typing.ClassVar[BuilderFlag]
    DIRECT_IO: typing.ClassVar[BuilderFlag]
    DISABLE_COMPILATION_CACHE: typing.ClassVar[BuilderFlag]
    DISABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    DISTRIBUTIVE_INDEPENDENCE: typing.ClassVar[BuilderFlag]
    EDITABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    ERROR_ON_TIMING_CACHE_MISS: typing.ClassVar[BuilderFlag]
    EXCLUDE_LEAN_RUNTIME: typing.ClassVar[BuilderFlag]
    FP16: typing.ClassVar[BuilderFlag]
    FP4: typing.ClassVar[BuilderFlag]
    FP8: typing.ClassVar[BuilderFlag]
    GPU_FALLBACK: typing.ClassVar[BuilderFlag]
    INT4: typing.ClassVar[BuilderFlag]
    INT8: typing.ClassVar[BuilderFlag]
    MONITOR_MEMORY: typing.ClassVar[BuilderFlag]
    OBEY_PRECISION_CONSTRAINTS: typing.ClassVar[BuilderFlag]
    PREFER_PRECISION_CONSTRAINTS: typing.ClassVar[BuilderFlag]
    REFIT: typing.ClassVar[BuilderFlag]
    REFIT_IDENTICAL: typing.ClassVar[BuilderFlag]
    REFIT_INDIVIDUAL: typing.ClassVar[BuilderFlag]
    REJECT_EMPTY_ALGORITHMS: typing.ClassVar[BuilderFlag]
    SAFETY_SCOPE: typing.ClassVar[BuilderFlag]
    SPARSE_WEIGHTS: typing.ClassVar[BuilderFlag]
    STRICT_NANS: typing.ClassVar[BuilderFlag]
    STRIP_PLAN: typing.ClassVar[BuilderFlag]
    TF32: typing.ClassVar[BuilderFlag]
    VERSION_COMPATIBLE: typing.ClassVar[BuilderFlag]
    WEIGHTLESS: typing.ClassVar[BuilderFlag]
    WEIGHT_STREAMING: typing.ClassVar[BuilderFlag]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class MemoryPoolType:
    DLA_GLOBAL_DRAM: typing.ClassVar[MemoryPoolType]
    DLA_LOCAL_DRAM: typing.ClassVar[MemoryPoolType]
    DLA_MANAGED_SRAM: typing.ClassVar[MemoryPoolType]
    TACTIC_DRAM: typing.ClassVar[MemoryPoolType]
    TACTIC_SHARED_MEMORY: typing.ClassVar[MemoryPoolType]
    WORKSPACE: typing.ClassVar[MemoryPoolType]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class ITimingCache:

    def serialize(self) -> IHostMemory: ...

class IBuilderConfig:
    progress_monitor: IProgressMonitor

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def clear_flag(self, flag: BuilderFlag) -> None: ...

    def create_timing_cache(self, serialized_timing_cache: typing_extensions.Buffer) -> ITimingCache: ...

    def set_flag(self, flag: BuilderFlag) -> None: ...

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH: typing.ClassVar[NetworkDefinitionCreationFlag]
    PREFER_AOT_PYTHON_PLUGINS: typing.ClassVar[NetworkDefinitionCreationFlag]
    PREFER_JIT_PYTHON_PLUGINS: typing.ClassVar[NetworkDefinitionCreationFlag]
    STRONGLY_TYPED: typing.ClassVar[NetworkDefinitionCreationFlag]

    def __init__(self, value: int) -> None: ...

    def __int__(self) -> int: ...

    @property
    def name(self) -> str: ...

class Builder:

    def __init__(self, logger: ILogger) -> None: ...

    @typing.overload
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory: ...

    @typing.overload
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig, kernel_text: typing.Any) -> IHostMemory: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_network(self, flags: int=...) -> INetworkDefinition: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    @property
    def logger(self) -> ILogger: ...

class Runtime:

    def __init__(self, logger: ILogger) -> None: ...

    @typing.overload
    def deserialize_cuda_engine(self, serialized_engine: typing_extensions.Buffer) -> ICudaEngine: ...

    @typing.overload
    def deserialize_cuda_engine(self, stream_reader: IStreamReader) -> ICudaEngine: ...

    @typing.overload
    def deserialize_cuda_engine(self, stream_reader_v2: IStreamReaderV2) -> ICudaEngine: ...

    @property
    def logger(self) -> ILogger: ...

class Refitter:

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None: ...

    def get_missing_weights(self) -> list[str]: ...

    def refit_cuda_engine(self) -> bool: ...

    @property
    def logger(self) -> ILogger: ...

class OnnxParser:

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...

    def clear_flag(self, flag: typing.Any) -> None: ...

    def get_error(self, index: int) -> typing.Any: ...

    def parse(self, model: typing_extensions.Buffer, path: str=...) -> bool: ...

    def set_flag(self, flag: typing.Any) -> None: ...

    @property
    def num_errors(self) -> int: ...

class ParserError:

    def desc(self) -> str: ...

    def node(self) -> int: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...

class OnnxParserRefitter:

    def __init__(self, refitter: Refitter, logger: ILogger) -> None: ...

    def get_error(self, index: int) -> ParserError: ...

    def refit_from_bytes(self, model: typing_extensions.Buffer, path: str=...) -> bool: ...

    @property
    def num_errors(self) -> int: ...
