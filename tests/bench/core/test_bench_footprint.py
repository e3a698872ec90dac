"""Memory of a candidate, in a process of its own."""

import io
import sys

import pytest
from rich.console import Console

from sprfast.bench.core import footprint, libraries
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library

MIB = 2**20
SLACK = 1.0  # MiB: the kernel's counters lag behind
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def weights_mib(model, rank=None):
    """Of all parameters, or of those with so many dimensions."""
    return sum(value.nbytes for value in model.weights.values() if rank in (None, value.ndim)) / MIB


@linux
@pytest.mark.parametrize("name", ["eager", "cpu"])
def test_a_candidate_holds_its_weights_at_least(name, small_model, model_path):
    if name == "cpu" and library.unavailable():
        pytest.skip(library.unavailable())
    row = footprint.fresh(model_path, name, 2)
    assert (row["candidate"], row["images"], row["reason"]) == (name, 2, None)
    packed = {"eager": weights_mib(small_model), "cpu": 4 * weights_mib(small_model, 4)}[name]  # 36 values for 9
    assert row["built_mib"] > 0.9 * packed
    assert row["built_mib"] < 3 * packed
    assert row["build_peak_mib"] >= row["built_mib"] - SLACK
    assert row["calls_peak_mib"] >= row["built_mib"] - SLACK


@linux
def test_one_that_cannot_run_is_listed_with_the_reason(model_path, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "nosuch")
    row = footprint.fresh(model_path, "cpu", 1)
    assert row["built_mib"] is None
    assert row["reason"].startswith("its process ended with 3: backend cpu: ")
    console = Console(file=io.StringIO(), width=300)
    console.print(footprint.table([row]))
    assert f"cpu: {row['reason']}" in console.file.getvalue()


def test_bad_input_is_one_line(model_path, capsys):
    for arguments, names in (
        ([str(model_path), "--candidates", "nosuch"], "'nosuch'"),
        ([str(model_path), "--batch", "0"], "--batch: 0"),
        (["absent.safetensors"], "absent.safetensors"),
    ):
        assert footprint.main(arguments) == 2
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert names in printed.err


def test_only_linux_tells_it(small_model, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (eager,) = libraries.chosen(footprint.CPU, ["eager"])
    with pytest.raises(BackendError, match="Linux"):
        footprint.measure(small_model, eager, 1)
