"""NVIDIA's Triton Inference Server as a child process, on this machine's addresses only; the wheel
of nvidia-pytriton brings it.

    with Server([repository], folder) as server:
        server.http, server.grpc  # addresses
        server.metric("nv_inference_request_success", model="screw")
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PACKAGE = "nvidia-pytriton"
PATIENCE = 240.0  # seconds until it must be ready, or have stopped


def unavailable():
    """None where the server can start, else the reason and what to install."""
    try:
        home = _packed("pytriton/tritonserver")
    except importlib.metadata.PackageNotFoundError:
        return f"needs Triton Inference Server: run pip install --no-deps {PACKAGE}==0.7.0"
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        None
        if stub.is_dir()
        else f"{PACKAGE} has no backend for Python {sys.version_info.major}.{sys.version_info.minor}"
    )


def _packed(name):
    return Path(importlib.metadata.distribution(PACKAGE).locate_file(name))


class Server:
    """A running server.

    Args:
        repositories: its model repositories.
        folder: for its backends and its log; it must not exist.
        options: further arguments of its command line.

    Raises:
        RuntimeError: it stopped before it was ready, or was not ready in time; `log()` says why.
    """

    def __init__(self, repositories, folder, *options):
        folder.mkdir()
        home = _packed("pytriton/tritonserver")
        backend = folder / "backends/python"
        shutil.copytree(home / "backends/python", backend)
        stubs = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copytree(stubs, backend, dirs_exist_ok=True)
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in _free_ports(3))
        addresses = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        command = [home / "bin/tritonserver", f"--backend-directory={folder / 'backends'}", "--model-control-mode=none"]
        command += [f"--model-repository={repository}" for repository in repositories]
        for name, address in addresses.items():
            host, _, port = address.partition(":")
            command += [f"--{name}-address={host}", f"--{name}-port={port}"]
        # the backend's process takes the Python that it finds on PATH
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "LD_LIBRARY_PATH": str(_packed("nvidia_pytriton.libs"))}
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        """What it has printed."""
        return self._log.read_text("utf-8", "replace")

    def model_processes(self):
        """The command lines of the processes that run its models, by number."""
        numbers = [
            int(number)
            for path in Path(f"/proc/{self.process.pid}/task").glob("*/children")
            for number in path.read_text().split()
        ]
        return {number: Path(f"/proc/{number}/cmdline").read_text() for number in numbers}

    def stop(self):
        """Ask it to end, wait, and give its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill()

    def kill(self):
        """End it and its models' processes at once, if they still run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def metric(self, name, **labels):
        """The sum of the samples of this name that have these labels; 0 where there are none."""
        total = 0.0
        for found, given, value in re.findall(
            r"^(\w+)\{(.*)\} (\S+)$", self._get(self.metrics, "/metrics"), re.MULTILINE
        ):
            if found == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', given)).items():
                total += float(value)
        return total

    def settled(self, name, **labels):
        """The metric once it has stood still for a while, since an answer may come before it is
        counted.
        """
        values = []
        while len(values) < 5 or len(set(values[-5:])) > 1:
            time.sleep(0.1)
            values.append(self.metric(name, **labels))
        return values[-1]

    def _wait(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server stopped with {self.process.returncode}:\n{self.log()}")
            try:
                self._get(self.http, "/v2/health/ready")
                return
            except OSError:  # nobody listens yet, or it is not ready
                time.sleep(0.1)
        raise RuntimeError(f"the server was not ready after {PATIENCE} s:\n{self.log()}")

    @staticmethod
    def _get(address, path):
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.read().decode()


def _free_ports(count):
    """Ports that nothing listens on, each found while the others are held."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
