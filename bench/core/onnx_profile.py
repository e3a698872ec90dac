"""Where onnxruntime spends its time in the folded graph and in a plain export of the published
pipeline, operator type by operator type.

`python -m sprfast.bench.core.onnx_profile MODEL` prints a table. The folded graph is that of
backend onnxruntime, the plain one that of the peer `onnx_unfolded`; they take turns on the same
image and noise, first as they are used and then under onnxruntime's own profiler, which names what
the operators were fused to. Exit 1 where their maps differ.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from torch import Tensor

from sprfast.bench.core import libraries, timing
from sprfast.bench.core.libraries.graph import INPUT, exported, unfolded_graph
from sprfast.bench.core.sweeps import plural
from sprfast.bench.core.work import random_images
from sprfast.errors import CheckFailedError, InputError, SprfastError
from sprfast.formats import model as model_file
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.method.folded import MIN_SIZE
from sprfast.method.noise import noise_bank
from sprfast.system import environment

SCHEMA_VERSION = 1
CALLS = 10
LIMIT = 1e-5  # of the difference of the maps, relative to the largest value of the plain graph's
CANDIDATES = {"folded": "onnx_plan", "plain": "onnx_unfolded"}  # of `sprfast bench`, that use the graphs
REST = "between operators"  # a row for what of a call is no operator's
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class _Graph:
    """An ONNX model and what it is given."""

    content: bytes
    inputs: Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or with --json the report; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sprfast.bench.core.onnx_profile", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="a model file")
    parser.add_argument("--size", type=int, help="pixels on both sides of the image; the model's where it is not given")
    parser.add_argument("--calls", type=int, default=CALLS, help="of each graph, timed and then profiled")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    given = parser.parse_args(argv)
    try:
        if given.calls < 1:
            raise InputError(f"--calls: {given.calls} is not allowed, expected at least 1")
        model = model_file.load(given.model)
        size = model.preprocessing.size if given.size is None else given.size
        if size < MIN_SIZE:
            raise InputError(f"--size: {size} is not allowed, expected at least {MIN_SIZE}")
        report = measure(model, size, given.calls)
        if given.json:
            print(json.dumps(report, indent=1, allow_nan=False))
        else:
            Console(highlight=False).print(table(report))
        if not report["passed"]:
            raise CheckFailedError(
                f"the maps of the two graphs differ by {_difference(report)}, allowed {LIMIT:g}: one of them is wrong"
            )
    except SprfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(model: Model, size: int, calls: int) -> dict[str, Any]:
    """Time both graphs, then profile them, for one image a call and with the threads that torch
    has.

    Args:
        model: what is computed.
        size: pixels on both sides of the image.
        calls: of each graph, in turns, after one that does not count.

    Returns:
        The report, plain JSON values. Of a graph, `ms_per_image` is median, min and max of the
        calls without the profiler and `operators` has a row for each operator type that ran: nodes
        a call, the mean of their `ms` in a profiled call, and `percent` of it; the last one is what
        a call spends between operators, so that `percent` sums to 100. `ratio` says how many times
        as fast the folded graph is, within a turn. `largest_difference` is relative; null where a
        map is not finite.

    Raises:
        BackendError: onnxruntime or what exports the plain graph is not installed.
    """
    noise = noise_bank(model.schedule, size, size, model.noise_seed)
    x = random_images(1, size).pixels
    built = {
        name: libraries.chosen(CPU, [candidate])[0].build(model, noise, CPU) for name, candidate in CANDIDATES.items()
    }
    difference = _largest_difference(*(built[name](x) for name in CANDIDATES))
    timed = {name: lambda index, maps=maps: maps(x) for name, maps in built.items()}
    settle = {name: functools.partial(maps, x) for name, maps in built.items()}
    measured = list(timing.rounds(timed, CPU, 0.0, calls, settle=settle))
    profiles = _profiled(_graphs(model, x, noise), calls)
    milliseconds = {name: timing.spread([1e3 * seconds[name] for seconds in measured]) for name in CANDIDATES}
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(CPU) | {"onnxruntime": environment.version("onnxruntime")},
        "network": model.network.to_json(),
        "input": {"images": 1, "draws": model.schedule.draws, "height": size, "width": size},
        "calls": calls,
        "graphs": {
            name: {"candidate": CANDIDATES[name], "ms_per_image": milliseconds[name], **profiles[name]}
            for name in CANDIDATES
        },
        "ratio": timing.ratio(measured, "plain", "folded"),
        "largest_difference": difference if np.isfinite(difference) else None,
        "limit": LIMIT,
        "passed": difference <= LIMIT,
    }


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal; fits 80 columns."""
    given, graphs, machine = report["input"], report["graphs"], report["environment"]
    title = (
        f"{given['height']}x{given['width']}, {plural(given['draws'], 'draw')}, onnxruntime "
        f"{machine['onnxruntime']}, cpu"
    )
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("operator", no_wrap=True)
    for name in graphs:
        for heading in (f"{name}\nnodes", "\nms", "\n%"):
            result.add_column(heading, justify="right", no_wrap=True)
    rows = {name: {row["operator"]: row for row in graph["operators"]} for name, graph in graphs.items()}
    found = {operator for of_graph in rows.values() for operator in of_graph}

    def cost(operator: str) -> tuple[bool, float]:
        return operator == REST, -sum(of_graph[operator]["ms"] for of_graph in rows.values() if operator in of_graph)

    for operator in sorted(found, key=cost):
        result.add_row(operator, *(cell for name in graphs for cell in _cells(rows[name].get(operator))))
    result.add_section()
    result.add_row(
        "a profiled call", *(cell for graph in graphs.values() for cell in ("", f"{graph['profiled_ms']:.4g}", ""))
    )
    speeds = [f"{name} {graph['ms_per_image']['median']:.4g}" for name, graph in graphs.items()]
    ratio = report["ratio"]
    return Group(
        result,
        f"{machine['cpu']}, {plural(machine['torch_threads'], 'thread')}, load {machine['load_average']} at the end",
        f"ms an image without the profiler, median of {plural(report['calls'], 'call')}: {', '.join(speeds)}",
        f"folded is {ratio['median']:.3f} times as fast as plain ({ratio['min']:.3f}-{ratio['max']:.3f} within a turn)",
        f"largest relative difference of their maps: {_difference(report)} (allowed {report['limit']:g})",
    )


def _graphs(model: Model, x: Tensor, noise: Sequence[Tensor]) -> dict[str, _Graph]:
    """What the candidates run."""
    folded = onnx_model(fold(model), *x.shape[2:], normalization="instance").SerializeToString()
    draws = torch.cat([z[:, 0] for z in noise]).numpy()
    with exported(unfolded_graph(model, noise)) as path:
        plain = path.read_bytes()
    return {"folded": _Graph(folded, {"image": x.numpy(), "noise": draws}), "plain": _Graph(plain, {INPUT: x.numpy()})}


def _profiled(graphs: Mapping[str, _Graph], calls: int) -> dict[str, dict[str, Any]]:
    """The mean time of a call and its rows, of each graph; the graphs take turns."""
    import onnxruntime

    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in graphs.items():
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors, which are raised too
            options.intra_op_num_threads = torch.get_num_threads()
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, name))
            sessions[name] = onnxruntime.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"])
        for _ in range(1 + calls):
            for name, graph in graphs.items():
                sessions[name].run(None, graph.inputs)
        return {
            name: _rows(json.loads(Path(session.end_profiling()).read_text("utf-8")))
            for name, session in sessions.items()
        }


def _rows(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean times in the calls of a profile but the first, in ms; the events' are in
    microseconds.
    """
    first, *calls = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    whole = 1e-3 * statistics.fmean(call["dur"] for call in calls)
    spent: dict[str, float] = collections.defaultdict(float)
    nodes: dict[str, set[str]] = collections.defaultdict(set)
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= first["ts"] + first["dur"]:
            spent[event["args"]["op_name"]] += 1e-3 * event["dur"] / len(calls)
            nodes[event["args"]["op_name"]].add(event["name"])
    spent[REST] = whole - sum(spent.values())
    rows = [
        {"operator": name, "nodes": len(nodes[name]) or None, "ms": ms, "percent": 100 * ms / whole}
        for name, ms in sorted(spent.items(), key=lambda item: (item[0] == REST, -item[1]))
    ]
    return {"profiled_ms": whole, "operators": rows}


def _largest_difference(given: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """Of both maps, relative to the largest value of each; NaN where one is not finite."""
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(given, expected, strict=True)]
    return float(np.max(errors))  # Python's max would lose a NaN


def _difference(report: Mapping[str, Any]) -> str:
    value = report["largest_difference"]
    return "not a number" if value is None else f"{value:.1e}"


def _cells(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "", "-", "-"
    return str(row["nodes"] or ""), f"{row['ms']:.4g}", f"{row['percent']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
