"""What `make wheel` builds: for every Linux, the same bytes each time, all that a line needs."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from support import ROOT
from support.checkouts import LIBRARY, PIP, copy, run

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds for Linux"),
]
TAG = "manylinux_2_28_x86_64"


def make_wheel(folder, **environment):
    """What `make wheel` says, and the wheel that it makes in a fresh checkout."""
    checkout = copy(folder / "checkout")
    given = [f"VENV={ROOT / '.venv'}", f"PYTHON={sys.executable}", f"DIST={folder}", "SOURCE_DATE_EPOCH=1800000000"]
    said = run(["make", "wheel", *given], checkout, **environment)
    return said, folder / f"sprfast-{sprfast.__version__}-py3-none-{TAG}.whl"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tools = ROOT / ".venv-wheel" / "ready"
    command = ["make", str(tools), f"VENV={ROOT / '.venv'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs ziglang and auditwheel from PyPI: {done.stderr.splitlines()[-1]}")
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(made):
    return made[1]


def dependencies(wheel):
    """Names of the distributions that a plain install of the wheel brings along."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        needed = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    found = set()
    while needed:
        requirement = needed.pop()
        name = re.match(r"[\w.-]+", requirement)[0]
        if ";" not in requirement and name not in found:
            found.add(name)
            needed += importlib.metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    run([*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel], folder)
    for name in dependencies(wheel):
        for path in importlib.metadata.files(name):
            top = path.parts[0]
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(Path(path.locate()).parents[len(path.parts) - 1] / top)
    return folder


def outside(installed, *arguments):
    """stdout of Python without its own packages, and without a compiler."""
    given = {"PATH": "/nonexistent", "PYTHONPATH": str(installed), "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-S", *map(str, arguments)]
    done = subprocess.run(command, env=given, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_on_every_linux_of_its_tag_without_other_libraries(made):
    said, wheel = made
    consistent = re.search(r'platform\s+tag:\s+"manylinux_2_(\d+)_x86_64"', said)
    assert int(consistent[1]) <= 28
    needed = set(re.findall(r"\b(lib\w+|ld-[\w-]+)\.so\.\d+", said))
    assert needed <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64"}
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".so" in name] == [LIBRARY]


def test_the_same_commit_gives_the_same_bytes(wheel, tmp_path):
    """Elsewhere, by a compiler that has kept nothing, with another mask of modes."""
    before = os.umask(0o077)
    try:
        _, again = make_wheel(tmp_path, ZIG_GLOBAL_CACHE_DIR=str(tmp_path / "zig"), TZ="Asia/Tokyo")
    finally:
        os.umask(before)
    assert again.read_bytes() == wheel.read_bytes()


def test_the_sdist_has_every_source(wheel):
    names = run(["tar", "-tzf", wheel.parent / f"sprfast-{sprfast.__version__}.tar.gz"], "/").splitlines()
    for folder, patterns in (("kernels/cpu", ("*.cpp", "*.h", "*.map", "*.in", "CMakeLists.txt")), ("include", ("*",))):
        for path in (each for pattern in patterns for each in (ROOT / folder).glob(pattern)):
            assert f"sprfast-{sprfast.__version__}/{path.relative_to(ROOT)}" in names


def test_a_plain_install_is_light(wheel):
    heavy = {"torch", "scikit-learn", "scipy", "matplotlib", "jinja2"}
    assert {"numpy", "pillow"} <= dependencies(wheel)
    assert dependencies(wheel) & heavy == set()


def test_a_machine_without_a_compiler_scores_an_export(installed, small_model, pictures, tmp_path):
    plan = tmp_path / "a.plan"
    export.export(small_model, plan, Request("plan"))
    document = json.loads(outside(installed, "-m", "sprfast", "predict", plan, *pictures, "--json"))
    assert document["backend"] == "cpu"
    expected = [result.pred_score for result in sprfast.load(plan).predict(pictures)]
    assert [row["pred_score"] for row in document["results"]] == pytest.approx(expected, rel=1e-5)
    found = outside(installed, "-c", "from sprfast.kernels.cpu import library as l; print((l.__file__, l.available()))")
    file, sets = ast.literal_eval(found)
    assert file.startswith(str(installed))
    assert sets[-1] == "generic"
    assert len(sets) > 1 or "avx2" not in Path("/proc/cpuinfo").read_text()


def test_importing_takes_under_a_third_of_a_second(installed):
    code = "import time; t = time.perf_counter(); import sprfast; print(time.perf_counter() - t)"
    assert min(float(outside(installed, "-c", code)) for _ in range(3)) < 0.3
