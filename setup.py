"""Packaging: `sprfast`, the folders `kernels` and `bench` as `sprfast.kernels` and `sprfast.bench`,
and the library of the CPU kernels.
"""

import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sprfast" / "_version.py").read_text()).group(1)
LOADGEN = "mlcommons-loadgen>=6; sys_platform == 'linux' and platform_machine == 'x86_64'"  # where it has wheels
TENSORRT_RTX = "tensorrt-rtx-cu13>=1.7; sys_platform == 'linux' and platform_machine == 'x86_64'"
CUDA_BINDINGS = "cuda-bindings>=12.9; sys_platform == 'linux'"
ONNX = ["onnx>=1.23", "onnxruntime>=1.32"]
TELEMETRY = "prometheus-client>=0.20"
OPENCV = "opencv-python-headless>=4.10"
PLC = ["pymodbus>=3.16,<4", "asyncua>=2"]
MQTT = "paho-mqtt>=2"
HEIC = "pillow-heif>=1.8"
BASLER = "pypylon>=26.9; sys_platform == 'linux' and platform_machine == 'x86_64'"
TRITON = "triton>=3.6; sys_platform == 'linux'"  # CUDA builds of torch bring their own

SCIPY = "scipy>=1.14"
FIGURES = ["matplotlib>=3.9", SCIPY]
PAGE = ["starlette>=0.45", "uvicorn>=0.30"]
TRAIN = ["torch>=2.11", "scikit-learn>=1.6", *FIGURES, "jinja2>=3.1"]

CPU_KERNELS = "sprfast.kernels.cpu"
WARNINGS = "-Wall -Wextra"
# Of operators.cpp, which is compiled once for each instruction set.
OPERATOR_FLAGS = (
    f"-std=c++17 -O3 -fPIC -fno-exceptions -fno-rtti -fno-math-errno -ffp-contract=fast -fvisibility=hidden {WARNINGS}"
)
X86_SETS = {
    "generic": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    "amx": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512 -mamx-tile -mamx-bf16 -DSPR_AMX",
}
# Everything else, compiled once, for the least processor. Nothing is contracted: results are those
# of NumPy and Pillow bit for bit.
UNITS = sorted(path.name for path in ROOT.glob("kernels/cpu/*.cpp") if path.name != "operators.cpp")
NEEDED = ("kernels/cpu/*.h", "kernels/cpu/exported.map", "kernels/cpu/CMakeLists.txt", "kernels/cpu/*.in", "include/*")
UNIT_FLAGS = (
    f"-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Iinclude {WARNINGS} -DSPRFAST_VERSION={VERSION}"
)
# The C++ library comes along, hidden: a caller may have another one.
LINK_FLAGS = "-shared -pthread -static-libstdc++ -static-libgcc -Wl,--as-needed -Wl,--version-script"


class BuildCpuKernels(build_ext):
    """The CPU engine as one library: operators.cpp compiled for each instruction set, and UNITS.

    Where it cannot be built the install goes on without it, and a text file in its place says why.
    CXX (or CC), CPPFLAGS, CFLAGS, CXXFLAGS and LDFLAGS are taken from the environment.
    """

    def run(self):
        """Build into the source folder where `--inplace` or an editable install asks for it."""
        source = self.get_finalized_command("build_py").get_package_dir(CPU_KERNELS)
        folder = Path(source) if self.inplace else Path(self.build_lib, *CPU_KERNELS.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        library, reason = folder / "libsprfast.so", folder / "libsprfast.txt"
        library.unlink(missing_ok=True)
        reason.unlink(missing_ok=True)
        try:
            self.build(source, library)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)).splitlines()
            why = next((line for line in lines if re.search("error|cannot", line)), " ".join(lines))
            reason.write_text(why, "utf-8")
            remedy = "install a C++17 compiler (`apt install g++` or `dnf install gcc-c++`) and install sprfast again"
            print(f"sprfast: the CPU kernels were not built ({why}): {remedy}")

    def build(self, source, library):
        """Compile all at once, then link.

        Raises:
            OSError: there is no compiler.
            subprocess.CalledProcessError: it refuses; stderr says why.
        """
        given = {name: os.environ.get(name, "") for name in ("CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")}
        compiler = os.environ.get("CXX") or os.environ.get("CC") or "c++"
        compiling = "{compiler} {CPPFLAGS} {CFLAGS} {CXXFLAGS}".format(compiler=compiler, **given)
        linking = "{compiler} {CFLAGS} {CXXFLAGS} {LDFLAGS}".format(compiler=compiler, **given)

        sets = _instruction_sets(compiling)
        operators = f"{OPERATOR_FLAGS} {source}/operators.cpp -DSPR_SET"
        sources = {name: f"{operators}={name} {flags}" for name, flags in sets.items()}
        sources |= {Path(unit).stem: f"{UNIT_FLAGS} {source}/{unit}" for unit in UNITS}
        objects = {name: f"{self.build_temp}/{name}.o" for name in sources}
        os.makedirs(self.build_temp, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, [f"{compiling} {rest} -c -o {objects[name]}" for name, rest in sources.items()]))
        _run(f"{linking} {' '.join(objects.values())} {LINK_FLAGS}={source}/exported.map -o {library}")

    def get_ext_filename(self, fullname):
        """Without a tag of the Python, which it does not depend on."""
        return os.path.join(*fullname.split(".")) + ".so"


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of the platform: the library does not use Python's C interface."""

    def get_tag(self):
        """Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


def _instruction_sets(compiler):
    """Those that operators.cpp is compiled for, with their flags; by the compiler's target, which
    need not be this machine.
    """
    macros = subprocess.run(
        [*shlex.split(compiler), "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout.split()
    if "__x86_64__" in macros:
        return X86_SETS
    return {"neon" if "__aarch64__" in macros else "generic": ""}


def _run(command):
    print(command)
    print(subprocess.run(shlex.split(command), stderr=subprocess.PIPE, text=True, check=True).stderr, end="")


setup(
    name="sprfast",
    version=VERSION,
    description="Inference engine for score-based anomaly detection on production lines",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={"sprfast": "sprfast", "sprfast.kernels": "kernels", "sprfast.bench": "bench"},
    packages=[
        *("sprfast", *(f"sprfast.{name}" for name in find_packages("sprfast"))),
        *("sprfast.kernels", *(f"sprfast.kernels.{name}" for name in find_packages("kernels"))),
        *("sprfast.bench", *(f"sprfast.bench.{name}" for name in find_packages("bench"))),
    ],
    package_data={
        "sprfast": ["py.typed"],
        "sprfast.evaluation": ["*.css", "*.html", "*.js"],
        "sprfast.line.station": ["page.html"],
    },
    ext_modules=[
        Extension(
            f"{CPU_KERNELS}.libsprfast",
            sources=["kernels/cpu/operators.cpp", *(f"kernels/cpu/{unit}" for unit in UNITS)],
            depends=sorted(str(path.relative_to(ROOT)) for names in NEEDED for path in ROOT.glob(names)),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildCpuKernels, "bdist_wheel": PlatformWheel},
    # to score exports
    install_requires=[
        "numpy>=2.0",
        "safetensors>=0.5",
        "pillow>=11",
        "simplejpeg>=1.8",
        "typer>=0.15",
        "rich>=13",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        "train": TRAIN,  # models: to train, calibrate and export them, and to measure
        "figures": FIGURES,  # of `predict -o`
        "line": [TELEMETRY, SCIPY],
        "opencv": [OPENCV],
        "station": [*PAGE, *FIGURES, OPENCV],
        "harvesters": ["harvesters>=1.4"],
        "plc": PLC,
        "mqtt": [MQTT],
        "basler": ["pypylon>=26.9"],
        "heic": [HEIC],
        "demo": [*TRAIN, "scikit-image>=0.25"],
        "triton": [TRITON],
        "onnx": ONNX,
        "tensorrt": ["onnx>=1.23", "tensorrt>=10.13", CUDA_BINDINGS],
        "tensorrt-rtx": ["onnx>=1.23", TENSORRT_RTX, CUDA_BINDINGS],
        "pycuda": ["pycuda>=2024.1"],  # used in place of cuda-bindings where it is installed
        "ray": ["ray[data,serve]>=2.57,<2.64"],  # before: no short wait for a cluster; from 2.64: no bound on restarts
        "bench": ["pytest-benchmark>=5", LOADGEN, "nvidia-ml-py>=12"],
        "peers": [
            *ONNX,
            "onnxscript>=0.7",
            "openvino>=2026.4",
            "nncf>=3.4",
            "ncnn>=1.0.20261020",
            "pnnx>=20261020",
            "MNN>=3.6.1",
        ],
        "dev": [
            *TRAIN,
            "scikit-image>=0.25",
            TRITON,
            *ONNX,
            TENSORRT_RTX,
            CUDA_BINDINGS,
            TELEMETRY,
            OPENCV,
            *PLC,
            MQTT,
            *PAGE,
            HEIC,
            BASLER,
            "pytest>=8",
            "pytest-benchmark>=5",
            LOADGEN,
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "clang-format==22.1.8",
        ],
    },
    entry_points={"console_scripts": ["sprfast = sprfast.__main__:main"]},
)
