"""The library as C, C++ and C# meet it: installed without Python, found by CMake and pkg-config,
with Python's scores to the bit.
"""

import ctypes
import dataclasses
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

import sprfast
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.formats import export as export_file
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet
from support import ROOT
from support.c_interface import STRUCTS
from support.machine import NATIVE, output
from support.scoring_mode_cases import with_mode

EXAMPLES, PROGRAMS = ROOT / "examples", ROOT / "tests/kernels/cpu/native"
TOOLS = ("cmake", "make", "c++", "cc", "g++", "gcc", "ld", "as", "ar", "ranlib", "sh", "sed", "uname", "rm", "mkdir")
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "make", "c++", "cc", "pkg-config"))), reason="needs CMake and a C++ compiler"
)
C99 = "-std=c99 -Wall -Wextra -Werror -pedantic"
CXX17 = "-std=c++17 -Wall -Wextra -Werror -pedantic"


def run(command, **environment):
    done = subprocess.run(
        command if isinstance(command, list) else shlex.split(command),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder that `make install` fills, where there is no Python on the path."""
    folder = tmp_path_factory.mktemp("installed")
    (tools := folder / "tools").mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name))
    prefix, build = folder / "prefix", folder / "build"
    run(["make", "-C", str(ROOT), "install", f"PREFIX={prefix}", f"LIBRARY_BUILD={build}"], PATH=str(tools))
    return prefix


@pytest.fixture
def environment(installed):
    """Variables with which the installed library is found by compilers, and by programs."""
    (folder,) = installed.glob("lib*")
    return {"PKG_CONFIG_PATH": str(folder / "pkgconfig"), "LD_LIBRARY_PATH": str(folder)}


def built_c(folder, environment):
    flags = run("pkg-config --cflags --libs sprfast", **environment)
    run(f"cc {C99} {EXAMPLES}/c/station.c {flags} -o {folder}/station")
    return [f"{folder}/station"]


def built_cpp(folder, environment):
    """By a CMake project, which finds the library."""
    prefix = os.path.dirname(environment["LD_LIBRARY_PATH"])
    run(f"cmake -S {EXAMPLES}/cpp -B {folder}/build -DCMAKE_PREFIX_PATH={prefix} '-DCMAKE_CXX_FLAGS={CXX17}'")
    run(f"cmake --build {folder}/build")
    return [f"{folder}/build/station"]


def built_csharp(folder, environment):
    if not shutil.which("mcs"):
        pytest.skip("needs Mono: apt install mono-mcs mono-runtime")
    run(f"mcs -warnaserror -out:{folder}/Station.exe {EXAMPLES}/csharp/Station.cs {EXAMPLES}/csharp/Sprfast.cs")
    return ["mono", f"{folder}/Station.exe"]


def pictures():
    """Arrays of several sizes and depths, grey and colour."""
    random = np.random.default_rng(1)
    for index, (height, width) in enumerate(((32, 32), (33, 47), (97, 45), (20, 61), (3, 5), (131, 70))):
        contrast = 0.3 + 0.7 * (index % 3) / 2
        for channels in ((), (3,)):
            for dtype in (np.uint8, np.uint16):
                yield (random.random((height, width, *channels)) * contrast * np.iinfo(dtype).max).astype(dtype)


def write_pnm(path, array):
    kind = "P5" if array.ndim == 2 else "P6"
    header = f"{kind}\n{array.shape[1]} {array.shape[0]}\n{np.iinfo(array.dtype).max}\n"
    path.write_bytes(header.encode() + array.astype(array.dtype.newbyteorder(">")).tobytes())


@pytest.fixture(scope="module")
def plan(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    export.export(small_model, path, Request("plan"))
    return path


@pytest.mark.build
@needs_tools
@pytest.mark.parametrize("built", [built_c, built_cpp, built_csharp])
def test_the_examples_give_pythons_verdicts_and_scores(built, plan, environment, tmp_path):
    program = built(tmp_path, environment)
    (folder := tmp_path / "parts").mkdir()
    arrays = dict(zip((folder / f"{i:02}.pnm" for i in range(100)), pictures(), strict=False))
    for path, array in arrays.items():
        write_pnm(path, array)
    (folder / "bad.pnm").write_bytes(b"P6\n40 40\n255\nno")
    given = [*sorted(arrays), folder / "bad.pnm"] if built is built_c else [folder]
    lines = run([*program, str(plan), *map(str, given)], **environment).splitlines()
    assert len(lines) == len(arrays) + 1
    assert re.match(r"ERROR nan .*/bad\.pnm: \w", lines.pop(), re.IGNORECASE)
    runner = sprfast.load(plan)
    for line, (path, array) in zip(lines, arrays.items(), strict=True):
        expected = runner.predict(array, channel_order="rgb" if array.ndim == 3 else "grey")
        verdict, score, rest = line.split(" ", 2)
        assert (verdict, float(score), rest) == (expected.verdict.value, expected.pred_score, f"{path}: ")
    assert {line.split()[0] for line in lines} == {"PASS", "REJECT"}
    (folder / "missing.plan").unlink(missing_ok=True)
    refused = subprocess.run(
        [*program, str(folder / "missing.plan"), str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"station: {folder}/missing.plan: ")


@pytest.mark.build
@needs_tools
def test_nothing_is_exported_but_the_interface(installed):
    declared = set(re.findall(r"\b(sprfast_\w+)\(", (ROOT / "include" / "sprfast.h").read_text()))
    for path in (next(installed.glob("lib*/libsprfast.so")), library._PATH):
        symbols = {line.split()[-1] for line in run(f"nm -D --defined-only {path}").splitlines()}
        assert symbols == declared | {"spr_interface"}
        needed = set(re.findall(r"NEEDED.*\[(.*)\]", run(f"readelf -d {path}")))
        assert not {name for name in needed if not re.match(r"lib(c|m|pthread|dl)\.so|ld-linux", name)}
    assert "SONAME" in (dynamic := run(f"readelf -d {next(installed.glob('lib*/libsprfast.so'))}"))
    assert "[libsprfast.so.1]" in dynamic


@pytest.mark.build
@needs_tools
def test_structs_lie_in_memory_as_they_always_will(tmp_path):
    """Layouts of version 1 on a 64-bit machine, in C, in C++ and in the tests' own ctypes."""
    header = (ROOT / "include" / "sprfast.h").read_text()
    structs = {
        name: re.findall(r"\*?(\w+)(?:\[\w+\])?[,;]", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
        for name, body in re.findall(r"typedef struct (\w+) {(.*?)\n}", header, re.DOTALL)
    }
    assert structs.keys() == STRUCTS.keys()
    prints = "".join(
        f'    printf("\\n{name} %d", (int)sizeof({name}));\n'
        + "".join(f'    printf(" %d", (int)offsetof({name}, {field}));\n' for field in fields)
        for name, fields in structs.items()
    )
    (source := tmp_path / "layout.c").write_text(
        f"#include <sprfast.h>\n#include <stdio.h>\nint main(void) {{\n{prints}    return 0;\n}}\n"
    )
    for compiler in (f"cc {C99}", f"c++ -x c++ {CXX17}", f"c++ -x c++ -include {ROOT}/include/sprfast.hpp {CXX17}"):
        run(f"{compiler} -I {ROOT}/include {source} -o {tmp_path}/layout")
        found = {line.split()[0]: [*map(int, line.split()[1:])] for line in run(f"{tmp_path}/layout").splitlines()[1:]}
        assert found == LAYOUT
    for name, struct in STRUCTS.items():
        assert [field for field, _ in struct._fields_] == structs[name]
        offsets = [getattr(struct, field).offset for field in structs[name]]
        assert [ctypes.sizeof(struct), *offsets] == LAYOUT[name]


# Size, and where each field begins.
LAYOUT = {
    "sprfast_error": [512, 0, 4, 8],
    "sprfast_options": [16, 0, 4, 8],
    "sprfast_info": [144, 0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 128],
    "sprfast_frame": [40, 0, 4, 8, 16, 24, 28, 32],
    "sprfast_result": [512, 0, 4, 8, 16, 24, 28, 32],
    "sprfast_maps": [40, 0, 4, 8, 12, 16, 24, 32],
}


@pytest.fixture
def tiny_plan(small_model, tmp_path):
    """Of a network whose input has 16x16 pixels, and of one that keeps the aspect of frames."""

    def write(policy):
        mode = with_mode(small_model, schedule=Schedule((Level(1e-3, 1),)))
        path = tmp_path / f"{policy}.plan"
        export.export(dataclasses.replace(mode, preprocessing=Preprocessing(16, policy)), path, Request("plan"))
        return path

    return write


def sanitized(folder, program, sanitizer):
    """A native program with the library, compiled for a sanitizer."""
    flags, build = f"-O2 -g -fsanitize={sanitizer} -fno-sanitize-recover=all", folder / "build"
    run(f"cmake -S {ROOT}/kernels/cpu -B {build} -DCMAKE_BUILD_TYPE=Debug '-DCMAKE_CXX_FLAGS={flags}'")
    run(f"cmake --build {build} --parallel")
    linking = f"-L {build} -lsprfast -Wl,-rpath,{build} -pthread"
    run(f"c++ {CXX17} {flags} -I {ROOT}/include {PROGRAMS}/{program}.cpp {linking} -o {folder}/{program}")
    return folder / program


def on_aarch64(folder, program, emulator):
    build = emulator.path.parent
    linking = ["-L", build, "-lsprfast", f"-Wl,-rpath,{build}", "-pthread"]
    source = [f"-I{ROOT}/include", PROGRAMS / f"{program}.cpp"]
    output([*emulator.compiler, *CXX17.split(), "-O2", *source, *linking, "-o", folder / program])
    return folder / program


@pytest.mark.build
@pytest.mark.fuzz
@pytest.mark.timeout(1200)  # of ten thousand frames under a sanitizer on a slow machine
@needs_tools
@pytest.mark.parametrize(
    ("target", "program", "policy", "given", "said"),
    [
        ("address,undefined", "mutated_frames", "stretch", [10_000], r"[34]\d\d\d of 10000 frames have a score"),
        ("aarch64", "mutated_frames", "stretch", [160], r"[4-9]\d of 160 frames have a score"),
        ("thread", "engine_at_once", "fit", [], "the same bits"),
        ("aarch64", "engine_at_once", "fit", [], "the same bits"),
    ],
)
def test_programs(request, tiny_plan, tmp_path, target, program, policy, given, said):
    """With every access checked, or all synchronisation, or as compiled for aarch64."""
    if target == "aarch64":
        machine = request.getfixturevalue("emulator")
        linked = on_aarch64(tmp_path, program, machine)
    else:
        machine, linked = NATIVE, sanitized(tmp_path, program, target)
    assert re.match(said, machine.run(linked, tiny_plan(policy), *given))


CONTAINERS = r"""
#include <array>
#include <cstdio>
#include <sprfast.hpp>
#if __cplusplus >= 202002L
#include <span>
#endif

int main(int, char** arguments) {
    const std::array<unsigned char, 3 * 32 * 32> bytes{};
    const std::vector<std::uint16_t> values(32 * 48);
    sprfast::Engine opened(arguments[1], 1, "generic");
    const sprfast::Engine engine = std::move(opened);
    std::vector<sprfast_frame> frames{sprfast::packed(SPRFAST_BGR8, bytes, 32, 32),
                                      sprfast::packed(SPRFAST_GREY16, values, 32, 48),
                                      sprfast::packed(SPRFAST_GREY16, bytes, 32, 48)};
    frames[2].bytes--;
#if __cplusplus >= 202002L
    const std::vector<sprfast_result> results = engine.score_many(std::span<const sprfast_frame>(frames));
#else
    const std::vector<sprfast_result> results = engine.score_many(frames);
#endif
    const sprfast::Maps maps = engine.maps(frames[1]);
    std::printf("%s %d %d %d\n", engine.info().instruction_set, maps.height, maps.width, int(maps.pred_mask.size()));
    std::printf("%d\n", maps.result.pred_score == results[1].pred_score && engine.score(frames[0]).verdict != 0);
    std::printf("%d %s\n", results[2].code, results[2].reason);
    try {
        engine.maps(frames[2]);
    } catch (const sprfast::Error& error) {
        std::printf("%d %s\n", error.code, error.what());
    }
    try {
        sprfast::Engine("nowhere.plan");
    } catch (const sprfast::Error& error) {
        std::printf("%d %.13s\n", error.code, error.what());
    }
}
"""


@pytest.mark.build
@needs_tools
@pytest.mark.parametrize("standard", ["17", "20"])
def test_containers_and_exceptions(plan, environment, tmp_path, standard):
    (source := tmp_path / "containers.cpp").write_text(CONTAINERS)
    flags = run("pkg-config --cflags --libs sprfast", **environment)
    run(f"c++ {CXX17} -std=c++{standard} {source} {flags} -o {tmp_path}/containers")
    out = run(f"{tmp_path}/containers {plan}", **environment).splitlines()
    assert out[:2] == ["generic 32 48 65536", "1"]
    assert out[2] == out[3]
    assert out[2].startswith("1 frame: bytes")
    assert out[4] == "2 nowhere.plan:"[:15]


MEMORY = r"""
#include <sprfast.h>
#include <stdio.h>

static unsigned char pixels[192 * 192];

int main(int count, char **arguments) {
    sprfast_error error = {.size = sizeof error};
    sprfast_options options = {sizeof options, 1, NULL};
    sprfast_engine *engine;
    sprfast_frame frame = {sizeof frame, SPRFAST_GREY8, pixels, sizeof pixels, 192, 192, 192};
    sprfast_result result = {.size = sizeof result};
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    if (count != 2 || sprfast_open(arguments[1], &options, &engine, &error)) return puts(error.text), 1;
    for (int i = 0; i < 3; i++)
        if (sprfast_score(engine, &frame, &result, &error) || result.code) return puts(result.reason), 1;
    while (fgets(line, sizeof line, status)) fputs(line, stdout);
    return 0;
}
"""


@pytest.mark.build
@needs_tools
def test_memory_of_a_program_that_scores(environment, tmp_path):
    """At most 1.3 times that of the weights, as they are packed, and of the workspace."""
    size, draws, width = 192, 3, 64
    network = NetworkConfig(width, 8)
    mode = ScoringMode(Schedule((Level(1e-3, draws),)))
    model = Model(network, mode, Preprocessing(size), ScoreUNet(network).state_dict())
    export.export(model, plan := tmp_path / "model.plan", Request("plan"))
    (source := tmp_path / "memory.c").write_text(MEMORY)
    flags = run("pkg-config --cflags --libs sprfast", **environment)
    run(f"cc {C99} {source} {flags} -o {tmp_path}/memory")
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", run(f"{tmp_path}/memory {plan}", **environment))[1]) * 1024
    convolutions = [array for name, array in export_file.read(plan).folded.to_arrays().items() if array.ndim == 4]
    weights = 4 * 36 / 9 * sum(array.size for array in convolutions)
    workspace = 4 * 2.25 * draws * size * size * width
    assert 0.9 * weights <= peak <= 1.3 * (weights + workspace)


def test_both_builds_compile_the_operators_alike():
    """Whose bits depend on the compiler's flags: setup.py and CMake."""
    cmake, setup = (path.read_text() for path in (ROOT / "kernels" / "cpu" / "CMakeLists.txt", ROOT / "setup.py"))
    sets = dict(re.findall(r'"(\w+)": "(.*)"', re.search(r"X86_SETS = {(.*?)}", setup, re.DOTALL)[1]))
    assert sets == {name: flags.strip('"') for name, flags in re.findall(r"set\(FLAGS_(\w+) (.*)\)", cmake)}
    operators, units = (
        re.search(rf"{name} = \(?\n?\s*f?\"([^\n]*)", setup)[1] for name in ("OPERATOR_FLAGS", "UNIT_FLAGS")
    )
    for flag in re.findall(r"-f(?!PIC|visibility)[\w=-]+|-O\d", operators):
        assert flag in cmake
    assert "-ffp-contract=off" in units
    assert "sprfast PRIVATE -ffp-contract=off" in cmake
