"""The tests of pixels, noise and scores once more, with every access to memory and all arithmetic
checked.
"""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from support import TESTS

FILES = [TESTS / "kernels" / "cpu" / f"test_cpu_{unit}.py" for unit in ("noise", "pixels", "score")]


@pytest.mark.build
def test_under_sanitizers():
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        pytest.skip(f"there is no C++ compiler {compiler[0]}")
    # the C++ library too: where it comes after AddressSanitizer has started, nothing can be thrown
    preloaded = [_path_of(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    if None in preloaded:
        pytest.skip("the compiler has no AddressSanitizer")
    environment = os.environ | {
        "CFLAGS": "-g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": " ".join(map(str, preloaded)),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "pytest", "-x", *map(str, FILES), "-p", "no:cacheprovider", "-k", "native"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _path_of(compiler, library):
    """Of a library of the compiler, or None: of one that it has not got it prints the bare name."""
    command = [*compiler, f"-print-file-name={library}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return printed if os.path.isabs(printed) else None
