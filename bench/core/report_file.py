"""A bench report as a file: plain JSON values, `schema_version` first."""

from __future__ import annotations

import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any

from sprfast.bench.core import cases, scenarios
from sprfast.errors import InputError
from sprfast.system import files

# versions that are still read; what they have beside is not looked at
BEFORE = (6, 7)
READABLE = (*BEFORE, cases.SCHEMA_VERSION)
_FIELDS = {
    bool: ("complete",),
    str: ("model.sha256", "device", "timed", "truth", "baseline"),
    dict: ("environment", "model.network", "model.schedule", "candidates"),
    int: ("input.height", "input.width", "input.samples"),
}
_KINDS = {
    bool: "true or false",
    dict: "an object",
    str: "a string",
    int: "a whole number",
    list: "a list",
    float: "a number",
}
_SECONDS = (1e-12, 1e12)  # beyond any query; keeps every ratio finite
_WANTED = "give a report that `sprfast bench` of this version wrote"


def write(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
    """
    files.write_bytes(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report in a file, with all that `compare.compare` needs in it.

    Raises:
        InputError: the file is missing, is not JSON, has a schema version that is not among
            `READABLE`, or a field of it is missing or no good; the message names file and field.
    """
    report = parsed(path)
    try:
        _validate(report)
    except InputError as error:
        raise InputError(f"{path}: {error}; {_WANTED}") from None
    if report["schema_version"] in BEFORE:
        exported = report.pop("exports", None)
        report["accuracy"] = exported and [{**row, "reason": None} for row in exported]
        for entry in report["candidates"].values():
            entry.setdefault("memory", None)
            entry["asked_precision"] = entry["precision"]
    return report  # type: ignore[no-any-return]


def parsed(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); {_WANTED}") from error


def _validate(report: Any) -> None:
    version = _field(report, "schema_version", int)
    if version not in READABLE:
        raise InputError(f"schema_version: {version} cannot be read, only {', '.join(map(str, READABLE))}")
    if version == 6 and report.get("driver") != "rounds":
        raise InputError("driver: a report of MLPerf's LoadGen cannot be read any more")
    for kind, names in _FIELDS.items():
        for name in names:
            _field(report, name, kind)
    lengths = {name: _validate_candidate(entry, f"candidates.{name}") for name, entry in report["candidates"].items()}
    baseline = lengths.get(report["baseline"], {})
    for name, found in lengths.items():
        for key, count in found.items():
            of_baseline = baseline.get(key, count)
            if count != of_baseline:  # entry i of every candidate is of round i
                raise InputError(f"candidates.{name}.{key}.seconds: {count} rounds, but the baseline has {of_baseline}")


def _validate_candidate(entry: Any, place: str) -> dict[str, int]:
    """The number of rounds of each scenario that was measured."""
    for key, kind in (("status", str), ("precision", str), ("tolerance", float)):
        _field(entry, key, kind, place)
    for name, check in (_field(entry, "parity", dict, place, null=True) or {}).items():
        _field(check, "passed", bool, f"{place}.parity.{name}")
    rounds = {}
    for key in (scenario.key for scenario in scenarios.ALL):
        if _field(entry, key, dict, place, null=True) is None:
            continue
        seconds = _field(entry[key], "seconds", list, f"{place}.{key}")
        least, most = _SECONDS
        wrong = [value for value in seconds if type(value) not in {int, float} or not least < value < most]
        if wrong or not seconds:
            shown = reprlib.repr(wrong[0]) if wrong else "an empty list"
            raise InputError(f"{place}.{key}.seconds: {shown} is not allowed, only positive numbers, at least one")
        rounds[key] = len(seconds)
    return rounds


def _field(document: Any, path: str, kind: type, place: str = "", *, null: bool = False) -> Any:
    """The value of type `kind`, or null where allowed, at a dotted path below `place`."""
    value = document
    for name in path.split("."):
        place = f"{place}.{name}" if place else name
        if not isinstance(value, dict) or name not in value:
            raise InputError(f"{place}: is missing")
        value = value[name]
    if null and value is None:
        return None
    kinds = {int, float} if kind is float else {kind}  # not bool, which is an int too
    if type(value) not in kinds or (kind is float and not math.isfinite(value)):
        allowed = f"{_KINDS[kind]}{' or null' if null else ''}"
        raise InputError(f"{place}: {reprlib.repr(value)} is not allowed, only {allowed}")
    return value
