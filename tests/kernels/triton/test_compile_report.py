"""The gate on what the compiler makes of the kernels. Triton compiles in processes of its own,
outside of the interpreter.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from sprfast.kernels.triton import compile_report, launch
from support import ROOT

OPERATORS = """
import dataclasses, json, torch
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch
from sprfast.kernels.triton.compile_report import compile_launches, problems, rows
from support.kernel_cases import Shape, arguments

def recorded(operator, storage="bfloat16", height=192, width=192):
    given = arguments(operator, Shape(64, height, width, draws=3), getattr(torch, storage), "meta")
    with launch.recorded(90) as launches:
        getattr(kernels, operator)(*given.values())
    return launches
"""
NETWORK = """
from sprfast.backends.triton import launches
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet

config = NetworkConfig()
weights = {name: value.detach() for name, value in ScoreUNet(config).state_dict().items()}
plan = fold(Model(config, ScoringMode(Schedule((Level(1e-3, 3),))), Preprocessing(), weights))
"""


def compiled(*code, **variables):
    """What `code`, after OPERATORS, prints as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", "".join([OPERATORS, *code])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.compile
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_shipped_kernel_has_a_problem(capability):
    """192x192 images, one and sixteen, on the published network; one 16-bit type stands for
    both.
    """
    reports, found, table = compiled(
        NETWORK,
        f"""
every = [each for precision in ("bfloat16", "float32") for images in (1, 16)
         for each in launches(plan, precision, images, 192, 192, {capability})]
reports = compile_launches(every, {capability})
print(json.dumps([[each.to_json() for each in reports], problems(reports), rows(reports)]))
""",
    )
    assert found == []
    kernels = {(report["kernel"], report["storage"]) for report in reports}
    both = {
        "perturb_conv3x3",
        "affine_swish",
        "affine_swish_pool",
        "affine_swish_up2",
        "affine_swish_head",
        "group_statistics",
    }
    assert kernels >= {(name, storage) for name in both | {"group_norm_swish"} for storage in ("bfloat16", "float32")}
    assert kernels >= {("group_affine", "float32"), ("matmul", "float32")}
    assert all(
        report["map_loads"].keys() == {"128"} for report in reports if report["kernel"] in compile_report.MAP_LOADS
    )
    assert len(table) == len(reports) + 1
    assert {len(row) for row in table} == {len(table[0])}


@pytest.mark.compile
def test_each_kind_of_problem_is_found():
    found = compiled("""
apply, first, exact = (
    recorded(*given)[0] for given in (["affine_swish"], ["perturb_conv3x3"], ["perturb_conv3x3", "float32"])
)
bad = {
    "spilled": dataclasses.replace(apply, constants={"C": 64, "BLOCK": 1024}),
    "unaligned": dataclasses.replace(apply, arguments={**apply.arguments, "raw_stride": 68, "out_stride": 66}),
    "no tensor cores": dataclasses.replace(first, constants={**first.constants, "PRECISION": "ieee"}),
    "rounded": dataclasses.replace(exact, constants={**exact.constants, "PRECISION": "tf32"}),
}
found = {name: problems(compile_launches([each], 90)) for name, each in bad.items()}
compiled = dataclasses.replace(compile_launches([apply], 90)[0], shared_bytes=228 << 10, resident_warps=0)
found["shared"] = problems([compiled])
print(json.dumps(found))
""")
    assert "accesses to local memory" in found["spilled"][0]
    assert found["spilled"][0].startswith("affine_swish(bfloat16, C=64, BLOCK=1024, warps=4) on sm_90: ")
    unaligned = " ".join(found["unaligned"])
    assert re.search(
        r"feature maps are loaded in accesses of \d+x(16|32|64) bits.*stored in accesses of \d+x(16|32|64) bits",
        unaligned,
    )
    assert "tensor-core" in found["no tensor cores"][-1]
    assert "tensor-core" in found["rounded"][-1]
    assert [problem.partition(": ")[2].split(",")[0] for problem in found["shared"]] == [
        "233472 bytes of shared memory",
        "0 warps on a multiprocessor with 80 registers a thread",
    ]


@pytest.mark.compile
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_a_loop_that_does_not_read_ahead_is_found(capability):
    found = compiled(f"""
ahead = [each for storage in ("bfloat16", "float32") for operator, height in
         (("group_norm_affine", 192), ("group_norm_swish", 24), ("affine_swish_up2", 96))
         for each in recorded(operator, storage, height, height)[:1]]
serial = [dataclasses.replace(each, constants={{**each.constants, "STAGES": 1}}) for each in ahead]
print(json.dumps([problems(compile_launches(each, {capability})) for each in (ahead, serial)]))
""")
    assert found[0] == []
    assert [re.sub(r"\(.*: \d+", ":", problem) for problem in found[1]] == [
        f"{kernel}: loads of feature maps in flight a thread, at least 8 are wanted"
        for _ in ("bfloat16", "float32")
        for kernel in ("group_statistics", "group_norm_swish", "affine_swish_up2")
    ]


@pytest.mark.compile
def test_statistics_of_other_programs_are_acquired_before_they_are_read():
    assembly = compiled("""
from sprfast.kernels.triton import compile_report
(each,) = recorded("group_norm_affine")
print(json.dumps(compile_report._compile_source(compile_report._source(each), each.options, 90).asm["ptx"]))
""")
    written, found, read = re.split(r"(atom\.\S+)", assembly, maxsplit=1)
    assert found == "atom.global.gpu.acq_rel.add.u32"
    operations = re.compile(r"\b(st\.global|bar\.sync|ld\.global\S*)")
    assert operations.findall(written)[-2:] == ["st.global", "bar.sync"]
    assert operations.findall(read)[:2] == ["bar.sync", "ld.global.v4.b32"]
    assert "ld.global.nc" not in assembly


def test_launches_of_the_same_code_are_compiled_once():
    signatures, found, loads = compiled("""
(apply,) = recorded("affine_swish")
def with_numbers(stride, pixels):
    return dataclasses.replace(apply, arguments={**apply.arguments, "raw_stride": stride, "pixels": pixels})
given = [(64, 36864), (128, 9216), (64, 30201), (72, 36864), (1, 36864), (2**31, 36864), (64, 1)]
reports = compile_launches([with_numbers(*numbers) for numbers in given], 90)
print(json.dumps([[each.signature for each in reports], problems(reports[:1]), reports[0].to_json()["map_loads"]]))
""")
    assert (found, list(loads)) == ([], ["128"])
    assert [signature.pop("raw_stride") for signature in signatures] == ["i32:16", "i32", "1", "i64:16"]
    rest = {"p_raw": "*bf16:16", "p_affine": "*fp32:16", "p_out": "*bf16:16", "pixels": "i32", "out_stride": "i32:16"}
    assert signatures == [rest] * 4


@pytest.mark.compile
def test_the_report_compiles_what_triton_runs(tmp_path):
    """Triton's own launch path up to the assembly; a driver without a device names the target.

    In a new cache, since what a cached kernel was compiled from may have had other line numbers.
    """
    same = compiled(
        """
import triton
from triton.backends.compiler import GPUTarget
from sprfast.kernels.triton import compile_report

class NoDevice:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

triton.runtime.driver.set_active(NoDevice())
same = []
last = recorded("anomaly_map", height=200, width=151)
for each in [*last, *recorded("affine_swish"), recorded("perturb_conv3x3")[1]]:
    given = {**each.arguments, **each.constants}
    arguments = [given[name] for name in each.kernel.arg_names]
    runs = each.kernel.run(*arguments, grid=each.grid, warmup=True, **each.options)
    compiled = compile_report._compile_source(compile_report._source(each), each.options, 90)
    same.append(compiled.asm["ptx"] == runs.asm["ptx"])
print(json.dumps(same))
""",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert same == [True] * 4


def test_architectures_have_names():
    assert [compile_report.capability(name) for name in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")] == [
        80,
        86,
        89,
        90,
        100,
    ]
    with pytest.raises(ValueError, match="'sm_75' is not known, expected one of sm_80, sm_86, sm_89, sm_90, sm_100"):
        compile_report.capability("sm_75")


@pytest.mark.skipif(not launch.INTERPRETED, reason="Triton compiles here")
def test_the_interpreter_compiles_nothing():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_report.compile_launches([], 90)


def test_resident_warps():
    limits = compile_report.ARCHITECTURES[90]
    assert compile_report._resident_warps(limits, 4, 32, 0) == 64  # all there are
    assert compile_report._resident_warps(limits, 4, 217, 0) == 8  # 224 registers: two blocks
    assert compile_report._resident_warps(limits, 4, 32, 56 << 10) == 16  # 57 KiB with what is reserved: four blocks
    assert compile_report._resident_warps(limits, 1, 32, 0) == 32  # blocks
