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


WATERFALLS = ("turns", "single", "compile_library", "compile", "waterfall")


def summary(folder: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The figures that matter; what was not measured is null or missing.

    Args:
        folder: with the reports of the steps.
        before: the summary of an earlier call; where it has the same row, its time stands beside
            as `before_us`.
    """
    found: dict[str, Any] = {name: read(folder, name) for name in REPORTS}
    ceilings = found["convolutions"] and _ceilings(found["convolutions"])
    floor = ceilings["floor_us_per_image"] if ceilings else None
    waterfalls = [(name, found[name]) for name in WATERFALLS if found[name]]
    document: dict[str, Any] = {
        "ceilings": ceilings,
        "convolutions": [row for name in CONVOLUTIONS if found[name] for row in _convolutions(found[name])],
        "waterfall": [row for name, report in waterfalls for row in _waterfall(name, report, floor)],
        "timeline": found["timeline"] and _timeline(found["timeline"]),
        "operators": found["operators"] and _operators(found["operators"]),
        "passes": found["passes"] and _passes(found["passes"]),
        "own_convolutions": found["own_convolutions"] and _own_convolutions(found["own_convolutions"]),
        "efficientad": found["efficientad"] and _efficientad(found["efficientad"]),
        **{name: found[name] and found[name]["cases"] for name in ("threads", "replays")},
    }
    for table, keys in ROWS.items():
        earlier = {tuple(row.get(key) for key in keys): row for row in (before or {}).get(table) or ()}
        for row in document[table] or () if before else ():
            row["before_us"] = earlier.get(tuple(row[key] for key in keys), {}).get("us")
    return document


def show(document: dict[str, Any]) -> None:
    """The summary as a few tables, end to end last; then the steps."""
    console = Terminal(width=140)
    if document["ceilings"]:
        console.print(*(f"{name}: {_text(value)}" for name, value in document["ceilings"].items()), sep="\n")
    for name, title in TABLES.items():
        if document[name]:
            console.print(_table(document[name], title))
    if document["waterfall"]:
        console.print(_table([_flat(row) for row in document["waterfall"]], "end to end"))
    named = [(f"{row['candidate']}, {row['images']} images", row) for row in document["waterfall"]]
    for name, row in (*named, *((row["step"], row) for row in document["steps"])):
        if row["reason"]:
            console.print(f"{name}: {row['status']}, {row['reason']}", soft_wrap=True)
    title = "dry run: no time here means anything" if document["dry_run"] else "steps"
    console.print(_table([_step(row) for row in document["steps"]], title))


CONVOLUTIONS = ("convolutions", "convolutions_all_plans")
MEASURED = ("timeline", "operators", "passes", "own_convolutions", "efficientad", "threads", "replays")
REPORTS = (*CONVOLUTIONS, *WATERFALLS, *MEASURED)
TABLES = {
    "operators": "operators",
    "passes": "passes between two convolutions",
    "convolutions": "all convolutions alone",
    "own_convolutions": "each convolution: cuDNN and ours",
    "timeline": "kernels of a call",
    "threads": "eight threads",
    "replays": "the same call again and again",
    "efficientad": "EfficientAD-S",
}
# what makes a row of a table the same row in an earlier call
ROWS = {
    "operators": ("images", "operator", "shape"),
    "convolutions": ("images", "plans"),
    "own_convolutions": ("images", "input", "channels", "way"),
    "timeline": ("images",),
    "waterfall": ("step", "images", "candidate"),
}


def _step(row: dict[str, Any]) -> dict[str, Any]:
    load = row["clocks"] or {}
    medians = {key: load.get(key, {}).get("median") for key in ("sm_mhz", "memory_mhz", "power_w")}
    return {key: row[key] for key in ("step", "status", "seconds", "limit_s")} | medians


def _ceilings(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "gflop_per_forward": report["gflop_per_forward"],
        "matmul_tflop_per_s": report["matmul"]["tflop_per_s"]["median"],
        "copy_gb_per_s": report["copy"]["gb_per_s"]["median"],
        "floor_us_per_image": report["floor"]["us_per_image"],
    }


def _convolutions(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "images": row["images"],
            "plans": report["plans"],
            "us": row["us_per_image"]["median"],
            "percent_of_floor": row["percent_of_floor"],
        }
        for row in report["convolutions"]
    ]


def _waterfall(step: str, report: dict[str, Any], floor: float | None) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "images": batch["images"],
            "candidate": name,
            "status": entry["status"],
            "reason": entry["reason"],
            "images_per_s": entry["images_per_s"] and entry["images_per_s"]["images_per_s"],
            "us": entry["us_per_image"] and entry["us_per_image"]["median"],
            "us_per_image": entry["us_per_image"],
            "latency_ms": entry["latency"] and {key: entry["latency"][f"{key}_ms"] for key in ("p50", "p90", "p99")},
            "ratio_to": entry["ratio_to"]
            and {peer: ratio and ratio["median"] for peer, ratio in entry["ratio_to"].items()},
            # the floor is of the published mode's draws
            "percent_of_floor": 100 * floor / entry["us_per_image"]["median"]
            if floor and entry["us_per_image"] and step != "single"
            else None,
            "memory": entry["memory"],
            "relative_rms": entry["parity"] and entry["parity"]["relative_rms"],
        }
        for batch in report["batches"]
        for name, entry in batch["candidates"].items()
    ]


def _timeline(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "images": batch["images"],
            "kernels": batch["launches"],
            "us": batch["span_us"]["median"],
            "busy_us": batch["busy_us"]["median"],
            "idle_us": batch["idle_us"]["median"],
            "most": ", ".join(f"{row['name'][:24]} {row['us']:.0f}" for row in batch["by_name"][:3]),
        }
        for batch in report["batches"]
    ]


def _operators(report: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("operator", "shape", "calls", "gb_per_s", "percent_of_copy", "warm_us", "status", "reason")
    return [
        {"images": part["input"]["images"], **{key: row.get(key) for key in keys}, "us": _median(row)}
        for part in report["batches"]
        if part
        for row in part["operators"]
    ]


def _passes(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for part in report["batches"]:
        for row in part["passes"] if part else ():
            times = {f"{name}_us": _median(way) for name, way in row.get("ways", {}).items()}
            shown = {key: row[key] for key in ("pass", "shape")}
            rows.append({**shown, **times, "status": row["status"], "reason": row["reason"]})
    return rows


def _own_convolutions(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "images": batch["images"],
            "input": "x".join(map(str, row["input"])),
            "channels": row["weight"][0],
            "calls": row["calls"],
            "way": name,
            "us": _median(way),
            "tflop_per_s": way.get("tflop_per_s"),
            "x cudnn": way.get("x_library"),
            "error": way.get("relative_rms"),
            "tile": way.get("tile"),
            "status": way["status"],
            "reason": way["reason"],
        }
        for batch in report["batches"]
        for row in batch["convolutions"]
        for name, way in row["ways"].items()
    ]


def _efficientad(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "images": batch["images"],
            "candidate": name,
            "images_per_s": entry["images_per_s"],
            "us": entry["us_per_image"]["median"],
            "x ours": batch["ratio"]["median"] if name == "ours" else 1.0,
        }
        for batch in report["batches"]
        for name, entry in batch.get("candidates", {}).items()
    ]


def _median(row: dict[str, Any]) -> float | None:
    return row["time_us"]["median"] if "time_us" in row else None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    peers = row["ratio_to"] or {}
    return {
        "step": row["step"],
        "images": row["images"],
        "candidate": row["candidate"],
        "images/s": row["images_per_s"],
        "us/image": row["us"],
        "before": row.get("before_us"),
        **{f"x {name.removesuffix('_bfloat16')}": ratio for name, ratio in peers.items()},
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
