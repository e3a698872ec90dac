"""What the compiler makes of each launch, without a GPU: registers, spills, shared memory, access
widths, matrix instructions.

A launch recorded on meta tensors (`launch.recorded`) is compiled as Triton would compile it when it
runs, for any architecture; the numbers are read from the machine code. This shows slow code, not
wrong code: that is what `self_test` is for.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from sprfast.kernels.triton import launch, machine_code, one_launch
from sprfast.kernels.triton.launch import Launch
from sprfast.kernels.triton.machine_code import widths

REGISTERS = 65536  # 32-bit ones of a multiprocessor, on all of ARCHITECTURES
RESERVED_BYTES = 1024  # of shared memory, for each block
# Kernels that load feature maps: how many loads a thread has in flight, at least. Loops that read
# ahead have `launch.LOADS_IN_FLIGHT`, the other kernels what their blocks give.
MAP_LOADS = {
    "group_statistics": launch.LOADS_IN_FLIGHT,
    "group_norm_swish": launch.LOADS_IN_FLIGHT,
    "affine_swish_up2": launch.LOADS_IN_FLIGHT,
    "affine_swish": 6,
    "affine_swish_pool": 2,
    "affine_swish_head": 4,
    "norm_swish": 3,
    "norm_swish_pool": 2,
    "norm_swish_head": 4,
}
FIRST = ("noise_conv3x3", "perturb_conv3x3")  # the first convolution
ONE_LAUNCH = ("norm_swish", "norm_swish_pool", "norm_swish_head")  # whose programs wait for each other
MAP_STORES = (
    "affine_swish",
    "affine_swish_pool",
    "affine_swish_up2",
    "group_norm_swish",
    *FIRST,
    "norm_swish",
    "norm_swish_pool",
)
RESIDENT_WARPS = dict.fromkeys(FIRST, 8)  # at least, on a multiprocessor; others: DEFAULT_RESIDENT_WARPS
DEFAULT_RESIDENT_WARPS = 12


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Limits of a multiprocessor, from the CUDA programming guide."""

    shared_bytes: int  # shared memory
    warps: int
    blocks: int


ARCHITECTURES: dict[int, Architecture] = {
    80: Architecture(164 << 10, 64, 32),
    86: Architecture(100 << 10, 48, 16),
    89: Architecture(100 << 10, 48, 24),
    90: Architecture(228 << 10, 64, 32),
    100: Architecture(228 << 10, 64, 32),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled kernel. Accesses are instructions in the code, by bits a thread: {128: 8, 32:
    2}.

    A feature-map access is one of a whole [pixels, channels] block; the others are vectors of one
    number a channel or a pixel, and single numbers.
    """

    kernel: str
    capability: int  # 90 for sm_90
    # Triton's type of each argument: "*bf16", "i32", with ":16" where known to be divisible, or "1"
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    registers: int  # of one thread, 32 bits each
    stack_bytes: int  # of one thread
    local_accesses: int  # loads and stores of local memory: spills
    shared_bytes: int  # of one block
    resident_warps: int  # that fit on one multiprocessor
    loads: dict[int, int]  # of global memory, feature maps and asynchronous copies included
    stores: dict[int, int]
    map_loads: dict[int, int]
    map_stores: dict[int, int]
    loads_in_flight: int  # of feature maps, of one thread; see `machine_code.loads_in_flight`
    matrix: dict[str, int]  # tensor-core instructions: {"HGMMA": 24}

    @property
    def storage(self) -> str:
        """Type of the feature maps; float32 for a kernel that has none."""
        types = {kind.removeprefix("*").partition(":")[0] for kind in self.signature.values()}
        return "bfloat16" if "bf16" in types else "float16" if "fp16" in types else "float32"

    def describe(self) -> str:
        """Kernel, storage, constants, warps and architecture, for a message."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel}({self.storage}, {constants}, warps={self.warps}) on sm_{self.capability}"

    def to_json(self) -> dict[str, Any]:
        """All fields and `storage`."""
        return {**dataclasses.asdict(self), "storage": self.storage}


def capability(name: str) -> int:
    """90 for "sm_90".

    Raises:
        ValueError: it is none of `ARCHITECTURES`.
    """
    known = {f"sm_{number}": number for number in ARCHITECTURES}
    if name not in known:
        raise ValueError(f"architecture {name!r} is not known, expected one of {', '.join(known)}")
    return known[name]


def compile_launches(launches: Iterable[Launch], capability: int) -> list[Compiled]:
    """Compile the distinct ones of `launches` for one of `ARCHITECTURES`, in their order.

    Launches that Triton would serve by the same machine code are one: the same kernel, types,
    divisibility by 16, arguments that equal 1, constants and warps. Triton's cache on disk is used.

    Raises:
        RuntimeError: Triton is in its interpreter, which compiles nothing.
    """
    if launch.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set, and Triton's interpreter compiles nothing; unset it")
    sources = {}
    for each in launches:
        source = _source(each)
        sources[source.hash(), each.warps, each.cooperative] = each, source
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler runs outside of Python's lock
        return list(pool.map(lambda pair: _compile(pair[0], pair[1], capability), sources.values()))


def problems(reports: Iterable[Compiled]) -> list[str]:
    """What no shipped kernel may have, one sentence each; empty if all is well.

    - A stack or an access to local memory: registers were spilled.
    - More shared memory than a block may have, or fewer warps resident than `RESIDENT_WARPS` asks
    for.
    - An access to a feature map of less than 128 bits, or none found, in `MAP_LOADS` and
      `MAP_STORES`. The first convolution loads images of three channels, number by number, and
      stores a feature map.
    - Fewer loads of feature maps in flight than `MAP_LOADS` has.
    - The first convolution without tensor cores for 16-bit storage, or anything else with: IEEE
    float32 has none.
    """
    return [f"{each.describe()}: {problem}" for each in reports for problem in _problems(each)]


def rows(reports: Sequence[Compiled]) -> list[tuple[str, ...]]:
    """A table, its header first: one row a compiled kernel.

    `regs` of a thread, `shared` bytes of a block, `warps` that fit on a multiprocessor, `maps`
    loads + stores of feature maps by bits, `ahead` loads of them in flight, `matrix` tensor-core
    instructions.
    """
    header = ("kernel", "type", "C", "regs", "shared", "warps", "maps", "ahead", "matrix")
    return [header, *(_row(each) for each in reports)]


def _source(each: Launch) -> Any:
    """The launch's source with its arguments specialised, by Triton's own function."""
    signature, constants, attributes = {}, {}, {}
    given = {**each.arguments, **each.constants}
    for index, parameter in enumerate(each.kernel.params):
        value = given[parameter.name]
        kind, detail = "constexpr", value
        if not parameter.is_constexpr:
            specialize, align = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
            kind, detail = native_specialize_impl(CUDABackend, value, parameter.is_const, specialize, align)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = detail
        elif detail:
            attributes[(index,)] = CUDABackend.parse_attr(detail)
    return ASTSource(each.kernel, signature, constants, attributes)


def _compile_source(source: Any, options: dict[str, Any], capability: int) -> Any:
    return triton.compile(source, GPUTarget("cuda", capability, 32), options)


def _compile(each: Launch, source: Any, capability: int) -> Compiled:
    compiled = _compile_source(source, each.options, capability)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin))
        code = machine_code.parse(_output(triton.knobs.nvidia.nvdisasm.path, "-c", "-g", str(cubin)))
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    blocks = {each.constants.get(name, 0) * each.constants.get("C", 0) for name in ("BLOCK", "CHUNK_BLOCK")}
    lines = _map_lines(compiled.asm["ttgir"], blocks)
    of_maps = [found for found in code.instructions if found.line in lines]
    shared = compiled.metadata.shared
    return Compiled(
        kernel=each.name,
        capability=capability,
        signature=_signature(source, each),
        constants=each.constants,
        warps=each.warps,
        registers=used["REG"],
        stack_bytes=used["STACK"],
        local_accesses=sum(found.name in ("LDL", "STL") for found in code.instructions),
        shared_bytes=shared,
        resident_warps=_resident_warps(ARCHITECTURES[capability], each.warps, used["REG"], shared),
        loads=widths(code.instructions, "LDG", "LDGSTS"),
        stores=widths(code.instructions, "STG"),
        map_loads=widths(of_maps, "LDG", "LDGSTS"),
        map_stores=widths(of_maps, "STG"),
        loads_in_flight=machine_code.loads_in_flight(code, lines),
        matrix=dict(Counter(found.name for found in code.instructions if found.name.endswith("MMA"))),
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _signature(source: Any, each: Launch) -> dict[str, str]:
    """Types of the arguments, without the constants, as in `Compiled.signature`."""
    signature = {}
    for index, (name, kind) in enumerate(source.signature.items()):
        if name in each.arguments:
            divisible = ":16" if (index,) in source.attrs else ""
            signature[name] = str(source.constants[(index,)]) if kind == "constexpr" else f"{kind}{divisible}"
    return signature


def _map_lines(ttgir: str, blocks: set[int]) -> set[tuple[str, int]]:
    """(file, line) of the loads and stores of whole blocks: of so many elements."""
    locations = dict(re.findall(r"^(#loc\d*) = (loc\(.*\))$", ttgir, re.MULTILINE))
    accesses = re.findall(
        r"(?:tt\.load|tt\.store|ttg\.async_copy_global_to_local) "
        r".*tensor<(\d+)x(\d+)x!tt\.ptr<\w+>.* loc\((#loc\d*)\)$",
        ttgir,
        re.MULTILINE,
    )
    return {_line(location, locations) for first, second, location in accesses if int(first) * int(second) in blocks}


def _line(location: str, locations: dict[str, str]) -> tuple[str, int]:
    """File and line of an MLIR location; of a call's, those inside of the function."""
    text = locations[location]
    if found := re.match(r'loc\("([^"]+)":(\d+)', text):
        return found[1], int(found[2])
    return _line(re.findall(r"#loc\d*", text)[0], locations)


def _resident_warps(limits: Architecture, warps: int, registers: int, shared_bytes: int) -> int:
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)  # registers come in eights
    by_shared = limits.shared_bytes // (shared_bytes + RESERVED_BYTES)
    return warps * min(limits.warps // warps, limits.blocks, by_registers, by_shared)


def _problems(each: Compiled) -> Iterator[str]:
    if each.stack_bytes or each.local_accesses:
        yield f"{each.stack_bytes} bytes of stack and {each.local_accesses} accesses to local memory, none are allowed"
    limit = ARCHITECTURES[each.capability].shared_bytes - RESERVED_BYTES
    if each.shared_bytes > limit:
        yield f"{each.shared_bytes} bytes of shared memory, at most {limit} are allowed"
    wanted = RESIDENT_WARPS.get(each.kernel, DEFAULT_RESIDENT_WARPS)
    if each.kernel in ONE_LAUNCH:
        wanted = one_launch.RESIDENT_WARPS if each.storage == "float32" else one_launch.RESIDENT_WARPS_16_BIT
    if each.resident_warps < wanted:
        yield (
            f"{each.resident_warps} warps on a multiprocessor with {each.registers} registers a thread, at least "
            f"{wanted} are wanted"
        )
    for verb, kernels, accesses in (("loaded", MAP_LOADS, each.map_loads), ("stored", MAP_STORES, each.map_stores)):
        if each.kernel in kernels and min(accesses, default=0) < 128:
            listed = " ".join(f"{count}x{bits}" for bits, count in accesses.items()) or "unknown"
            yield f"feature maps are {verb} in accesses of {listed} bits, only 128 or more are allowed"
    if each.loads_in_flight < MAP_LOADS.get(each.kernel, 0):
        yield (
            f"{each.loads_in_flight} loads of feature maps in flight a thread, at least {MAP_LOADS[each.kernel]} are "
            f"wanted"
        )
    if (each.kernel in FIRST and each.storage != "float32") != bool(each.matrix):
        yield (
            f"tensor-core instructions {each.matrix}, expected in the first convolution for 16-bit storage and "
            f"nowhere else"
        )


def _row(each: Compiled) -> tuple[str, ...]:
    access_bits = sorted({*each.map_loads, *each.map_stores})
    return (
        each.kernel,
        {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[each.storage],
        str(each.constants.get("C", "-")),
        str(each.registers),
        str(each.shared_bytes),
        str(each.resident_warps),
        " ".join(f"{each.map_loads.get(bits, 0)}+{each.map_stores.get(bits, 0)}x{bits}" for bits in access_bits),
        str(each.loads_in_flight),
        " ".join(f"{count} {name}" for name, count in each.matrix.items()),
    )
