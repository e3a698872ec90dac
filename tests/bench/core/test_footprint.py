"""Memory of a candidate, in a process of its own."""

import io
import sys

import pytest
import torch
from rich.console import Console

from sprfast.bench.core import cases, footprint, libraries, peers, report
from sprfast.bench.page import render as page
from sprfast.errors import BackendError, InputError
from sprfast.kernels.cpu import library

MIB = 2**20
SLACK = 1.0  # MiB: the kernel's counters lag behind
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def weights_mib(model, rank=None):
    """Of all parameters, or of those with so many dimensions."""
    return sum(value.nbytes for value in model.weights.values() if rank in (None, value.ndim)) / MIB


@linux
@pytest.mark.parametrize("name", [pytest.param("eager", marks=pytest.mark.process), "cpu"])
def test_a_candidate_holds_its_weights_at_least(name, small_model):
    if name == "cpu" and library.unavailable():
        pytest.skip(library.unavailable())
    row = footprint.fresh(small_model, name, 2)
    assert (row["images"], row["reason"]) == (2, None)
    packed = {"eager": weights_mib(small_model), "cpu": 4 * weights_mib(small_model, 4)}[name]  # 36 values for 9
    assert row["built_mib"] > 0.9 * packed
    assert row["built_mib"] < 3 * packed
    assert row["build_peak_mib"] >= row["built_mib"] - SLACK
    assert row["calls_peak_mib"] >= row["built_mib"] - SLACK


@linux
@pytest.mark.process
def test_one_that_cannot_run_is_listed_with_the_reason(small_model, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "nosuch")
    row = footprint.fresh(small_model, "cpu", 1)
    assert row["built_mib"] is None
    assert row["reason"].startswith("its process ended with 3: backend cpu: ")


def test_it_is_a_part_of_the_report(small_model, monkeypatch):
    asked = []

    def fresh(model, name, images):
        asked.append((model.preprocessing.size, name, images))
        known = {"images": images, "built_mib": 1.25, "build_peak_mib": 2.25, "calls_peak_mib": 3.25, "reason": None}
        unknown = {"images": images, **dict.fromkeys(footprint.FIGURES), "reason": "no /proc"}
        return known if name == "published" else unknown

    monkeypatch.setattr(footprint, "fresh", fresh)
    options = cases.Options(size=16, batch=2, seconds=0.001, device="cpu", memory=True)
    document = cases.run(small_model, options, candidates=peers.CANDIDATES[:2])
    assert asked == [(16, "published", 2), (16, "channels_last", 2)]
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table(document))
    assert ["published", "2", "1.2", "2.2", "3.2"] in [line.split() for line in console.file.getvalue().splitlines()]
    assert "channels_last: memory not known, no /proc" in console.file.getvalue()
    html = page.render(document)
    assert "Memory in a process of its own" in html
    assert "not known: no /proc" in html


def test_it_is_measured_where_it_is_asked_for_and_on_a_cpu_only(small_model, monkeypatch):
    monkeypatch.setattr(cases.devices, "resolve", lambda device: torch.device("cuda", 0))
    with pytest.raises(InputError, match="--memory is measured on a CPU only, not on cuda:0"):
        cases.run(small_model, cases.Options(memory=True))


def test_only_linux_tells_it(small_model, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (eager,) = libraries.chosen(footprint.CPU, ["eager"])
    with pytest.raises(BackendError, match="Linux"):
        footprint.measure(small_model, eager, 1)
