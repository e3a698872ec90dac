"""What a GPU check found, from its files: for summary.json and for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich import box
from rich.table import Column, Table

from sprfast.system.terminal import Terminal


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """The report of a step, as far as it got; None where it got nowhere."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def counts(junit: Path) -> dict[str, int]:
    """Numbers of tests, and of those skipped, from pytest's XML."""
    suites = ElementTree.parse(junit).getroot().iter("testsuite")
    totals = [{name: int(suite.get(name, "0")) for name in ("tests", "skipped")} for suite in suites]
    return {name: sum(total[name] for total in totals) for name in ("tests", "skipped")}


def summary(folder: Path) -> dict[str, Any]:
    """The figures that matter; what was not measured is null or missing."""
    ceilings, waterfall, operators = (read(folder, name) for name in ("roofline", "waterfall", "operators"))
    return {
        "ceilings": _ceilings(ceilings) if ceilings else None,
        "waterfall": _waterfall(waterfall) if waterfall else None,
        "operators": _operators(operators) if operators else None,
        "passes": _passes(operators) if operators else None,
    }


def show(document: dict[str, Any]) -> None:
    """The summary as a few tables, the waterfall last; then the steps."""
    console = Terminal(width=140)
    for name in ("operators", "passes"):
        if document[name]:
            console.print(_table(document[name], name))
    if document["ceilings"]:
        rates = dict(document["ceilings"])
        convolutions = rates.pop("convolutions")
        console.print(*(f"{name}: {_text(value)}" for name, value in rates.items()), sep="\n")
        console.print(_table(convolutions, "all convolutions alone"))
    if document["waterfall"]:
        console.print(_table([_flat(row) for row in document["waterfall"]], "end to end"))
    named = [(f"{row['candidate']}, {row['images']} images", row) for row in document["waterfall"] or ()]
    for name, row in (*named, *((row["step"], row) for row in document["steps"])):
        if row["reason"]:
            console.print(f"{name}: {row['status']}, {row['reason']}", soft_wrap=True)
    title = "dry run: no time here means anything" if document["dry_run"] else "steps"
    steps = [{key: row[key] for key in ("step", "status", "seconds", "limit_s")} for row in document["steps"]]
    console.print(_table(steps, title))


def _ceilings(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "gflop_per_forward": report["gflop_per_forward"],
        "matmul_tflop_per_s": report["matmul"]["tflop_per_s"]["median"],
        "copy_gb_per_s": report["copy"]["gb_per_s"]["median"],
        "floor_us_per_image": report["floor"]["us_per_image"],
        "convolutions": [
            {
                "images": row["images"],
                "us_per_image": row["us_per_image"]["median"],
                "percent_of_floor": row["percent_of_floor"],
            }
            for row in report["convolutions"]
        ],
    }


def _waterfall(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "images": batch["images"],
            "candidate": name,
            "status": entry["status"],
            "reason": entry["reason"],
            "images_per_s": entry["images_per_s"] and entry["images_per_s"]["images_per_s"],
            "us_per_image": entry["us_per_image"],
            "latency_ms": entry["latency"] and {key: entry["latency"][f"{key}_ms"] for key in ("p50", "p90", "p99")},
            "ratio_to": entry["ratio_to"]
            and {peer: ratio and ratio["median"] for peer, ratio in entry["ratio_to"].items()},
            "percent_of_floor": entry["percent_of_floor"],
            "memory": entry["memory"],
            "relative_rms": entry["parity"] and entry["parity"]["relative_rms"],
        }
        for batch in report["batches"]
        for name, entry in batch["candidates"].items()
    ]


def _operators(report: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("operator", "shape", "calls", "gb_per_s", "percent_of_copy", "status", "reason")
    return [{**{key: row.get(key) for key in keys}, "us": _median(row)} for row in report["operators"]]


def _passes(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in report["passes"]:
        times = {f"{name}_us": _median(way) for name, way in row.get("ways", {}).items()}
        rows.append(
            {"pass": row["pass"], "shape": row["shape"], **times, "status": row["status"], "reason": row["reason"]}
        )
    return rows


def _median(row: dict[str, Any]) -> float | None:
    return row["time_us"]["median"] if "time_us" in row else None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    peers = row["ratio_to"] or {}
    spread = row["us_per_image"]
    return {
        "images": row["images"],
        "candidate": row["candidate"],
        "images/s": row["images_per_s"],
        "us/image": spread and spread["median"],
        **{
            f"x {name.removesuffix('_bfloat16')}": peers.get(name)
            for name in ("published", "eager_bfloat16", "compile_bfloat16")
        },
        "p50/p90/p99 ms": row["latency_ms"] and "/".join(f"{value:.3g}" for value in row["latency_ms"].values()),
        "% floor": row["percent_of_floor"],
        "error": row["relative_rms"] and row["relative_rms"]["error_map"],
    }


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    """One column a key of the rows, in the order they appear; columns without a value are
    left out.
    """
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) is not None for row in rows)
    ]
    columns = [Column(key, no_wrap=key != "reason") for key in keys]
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in keys))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return str(value)
