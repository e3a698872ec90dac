"""NVIDIA's Triton Inference Server as a child process, on this machine's addresses only; the wheel of nvidia-pytriton brings it.

    with Server(repository, folder) as server:
        server.http, server.grpc      # addresses
        server.metric("nv_inference_request_success", model="screw")
"""

import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PACKAGE = "nvidia-pytriton"
PATIENCE = 120.0  # seconds until it must be ready, or have stopped


def unavailable():
    """None where the server can start, else the reason and what to install."""
    try:
        home = _packed("pytriton/tritonserver")
    except importlib.metadata.PackageNotFoundError:
        return f"needs Triton Inference Server: run pip install --no-deps {PACKAGE}==0.7.0"
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    return None if stub.is_dir() else f"{PACKAGE} has no backend for Python {sys.version_info.major}.{sys.version_info.minor}"


def _packed(name):
    return Path(importlib.metadata.distribution(PACKAGE).locate_file(name))


class Server:
    """A running server.

    Args:
        repository: its model repository.
        folder: for its backends and its log.
        options: further arguments of its command line.

    Raises:
        RuntimeError: it stopped before it was ready, or was not ready in time; `log()` says why.
    """

    def __init__(self, repository, folder, *options):
        folder.mkdir()
        home = _packed("pytriton/tritonserver")
        backend = folder / "backends/python"
        shutil.copytree(home / "backends/python", backend)
        stubs = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copytree(stubs, backend, dirs_exist_ok=True)
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in _free_ports(3))
        addresses = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        command = [home / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={folder / 'backends'}"]
        for name, address in addresses.items():
            host, _, port = address.partition(":")
            command += [f"--{name}-address={host}", f"--{name}-port={port}"]
        # the backend's process takes the Python that it finds on PATH
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "LD_LIBRARY_PATH": str(_packed("nvidia_pytriton.libs"))}
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        """What it has printed."""
        return self._log.read_text("utf-8", "replace")

    def processes(self):
        """Numbers of the processes of its models."""
        return [int(number) for number in _output("ps", "-o", "pid=", "--ppid", str(self.process.pid)).split()]

    def stop(self, with_signal=signal.SIGTERM):
        """Ask it to end, wait, and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
            self.process.wait(PATIENCE)
        return self.process.returncode

    def metric(self, name, **labels):
        """The sum of the samples of this name that have these labels; 0 where there are none."""
        total = 0.0
        for found, given, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", self._get(self.metrics, "/metrics"), re.MULTILINE):
            if found == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', given)).items():
                total += float(value)
        return total

    def _wait(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server stopped with {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                self._get(self.http, "/v2/health/ready")
                return
            except OSError:  # nobody listens yet, or it is not ready
                time.sleep(0.1)
        raise RuntimeError(f"the server was not ready after {PATIENCE} s:\n{self.log()[-4000:]}")

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


def _output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
