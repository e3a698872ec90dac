"""Threads of the CPU kernels: callers at once, forks, a limit of threads, and what is left."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sprfast.backends.sessions.cpu import CpuSession
from sprfast.config import NetworkConfig
from sprfast.kernels.cpu import library
from sprfast.method import folded
from support import ROOT
from support.machine import output

pytestmark = [
    pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable())),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
CPU = ROOT / "kernels" / "cpu"
DRAWS = 2


def session(threads):
    """Of a network of random numbers, with so many threads or what a function says."""
    random, config = np.random.default_rng(0), NetworkConfig(base_width=32)
    arrays = {
        name: random.standard_normal(shape, np.float32) * np.float32(0.05)
        for name, shape in folded.shapes(config, DRAWS).items()
    }
    model = folded.from_arrays(config, DRAWS, arrays)
    return CpuSession(model, threads if callable(threads) else lambda: threads)


def inputs(height, width, images=1):
    random = np.random.default_rng(height)
    shape = (3, height, width)
    return random.random((images, *shape), np.float32), random.standard_normal((DRAWS, *shape), np.float32)


def same(got, expected):
    return all(map(np.array_equal, got, expected))


def tasks():
    """Threads of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def number_of_tasks_is(expected):
    """Soon: the system counts a thread for a moment after it was joined."""
    end = time.monotonic() + 5
    while len(tasks()) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return len(tasks()) == expected


def in_child(compute):
    """Whether `compute` is true in a forked child, which is ended where it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if compute() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("size", [(16, 16), (40, 33)])
def test_bits_are_those_of_one_thread(size):
    given = inputs(*size, images=4)
    expected = session(1).maps(*given)
    assert np.isfinite(expected[1]).all()
    for threads in (2, 3, 4, 5):
        assert same(session(threads).maps(*given), expected)


def test_callers_at_once_each_get_the_bits_of_one():
    shared = session(3)
    given = [inputs(16 + 8 * (i % 3), 24) for i in range(16)]
    expected = [shared.maps(*each) for each in given]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(lambda each: shared.maps(*each), given), expected, strict=True):
            assert same(got, alone)


def test_a_call_inside_a_call():
    shared = session(2)
    outer, inner = inputs(24, 16), inputs(16, 24)
    expected = shared.maps(*outer), shared.maps(*inner)
    got = []
    assert same(shared.maps(*outer, lambda layer: got.append(shared.maps(*inner))), expected[0])
    assert len(got) == 20
    assert all(same(each, expected[1]) for each in got)


def test_a_forked_child_and_its_child_compute_and_the_parent_goes_on():
    shared, given = session(3), inputs(32, 16)
    expected = shared.maps(*given)

    def right():
        return same(shared.maps(*given), expected)

    def freed():
        nonlocal shared
        shared = None
        gc.collect()
        return True

    assert in_child(lambda: right() and right() and in_child(right) and right() and freed())
    assert in_child(freed)  # without having computed
    assert right()


def test_a_child_of_a_fork_while_others_compute():
    shared, given = session(2), inputs(16, 16)
    expected, done = shared.maps(*given), threading.Event()

    def compute(other):
        while not done.is_set():
            shared.maps(*other)

    # calls with changing sizes take and give workspaces all the time
    others = [threading.Thread(target=compute, args=(inputs(16, 16 + i),)) for i in range(2)]
    for thread in others:
        thread.start()
    try:
        assert all(in_child(lambda: same(shared.maps(*given), expected)) for _ in range(10))
    finally:
        done.set()
        for thread in others:
            thread.join()


@needs_linux
def test_threads_block_signals_and_end_with_the_network():
    gc.collect()
    time.sleep(0.05)
    before = tasks()
    shared = session(4)
    assert number_of_tasks_is(len(before))
    shared.maps(*inputs(16, 16))
    made = tasks() - before
    assert len(made) == 3
    for task in made:
        status = Path(f"/proc/self/task/{task}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert all(blocked >> number - 1 & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))
    del shared
    gc.collect()
    assert number_of_tasks_is(len(before))


@needs_linux
def test_threads_that_wait_take_no_time():
    shared = session(3)
    shared.maps(*inputs(16, 16))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


LIMIT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
    static int made;
    const char* limit = getenv("THREAD_LIMIT");
    if (limit && made++ >= atoi(limit)) return EAGAIN;
    int (*create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
    return create(thread, attributes, start, argument);
}
"""

FEWER = """
import os
from test_cpu_threads import inputs, same, session, tasks

given = inputs(24, 16)
expected = session(1).maps(*given)
before = len(tasks())
os.environ["THREAD_LIMIT"] = "1"
one = session(4)
assert same(one.maps(*given), expected)
assert len(tasks()) == before + 1
assert same(session(4).maps(*given), expected)  # none at all
assert len(tasks()) == before + 1
del os.environ["THREAD_LIMIT"]
assert same(one.maps(*given), expected)
assert len(tasks()) == before + 3  # what was missing has been started
"""


@needs_linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_where_threads_cannot_be_started_there_are_fewer_and_the_same_bits(tmp_path):
    (tmp_path / "limit.c").write_text(LIMIT)
    preloaded = tmp_path / "limit.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "limit.c", "-ldl", "-o", preloaded], check=True)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    before = os.environ.get("LD_PRELOAD")  # of a sanitizer
    environment = os.environ | {"PYTHONPATH": path, "LD_PRELOAD": f"{before}:{preloaded}" if before else str(preloaded)}
    command = [sys.executable, "-c", FEWER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.build
@pytest.mark.parametrize(
    ("machine", "flags"),
    [
        ("native", ["-fsanitize=thread"]),
        ("native", ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
        ("aarch64", []),
    ],
    indirect=["machine"],
    ids=["thread", "address,undefined", "aarch64"],
)
def test_pools_and_callers_at_once_in_a_program(machine, flags, tmp_path):
    """Under sanitizers, and on aarch64."""
    units = [CPU / f"{name}.cpp" for name in ("operators", "network", "threads", "score")]
    given = ["-std=c++17", "-O2", "-g", "-pthread", "-fno-math-errno", "-ffp-contract=fast", "-DSPR_SET=generic"]
    driver = ROOT / "tests/kernels/cpu/native/threads.cpp"
    program = tmp_path / "threads"
    output([*machine.compiler, *given, *flags, f"-I{CPU}", driver, *units, "-o", program])
    machine.run(program)
