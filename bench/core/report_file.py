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

BEFORE = 6  # a version that is still read; what it has beside is not looked at
READABLE = (BEFORE, cases.SCHEMA_VERSION)
_KEYS = tuple(scenario.key for scenario in scenarios.ALL)
_FIELDS: dict[tuple[str, ...], type] = {
    ("complete",): bool,
    ("environment",): dict,
    ("model", "sha256"): str,
    ("model", "network"): dict,
    ("model", "schedule"): dict,
    ("input", "height"): int,
    ("input", "width"): int,
    ("input", "samples"): int,
    ("device",): str,
    ("timed",): str,
    ("truth",): str,
    ("baseline",): str,
    ("candidates",): dict,
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
    try:
        report = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); {_WANTED}") from error
    try:
        _validate(report)
    except InputError as error:
        raise InputError(f"{path}: {error}; {_WANTED}") from None
    if report["schema_version"] == BEFORE:
        report["exports"] = None
        for entry in report["candidates"].values():
            entry["memory"] = None
    return report  # type: ignore[no-any-return]


def _validate(report: Any) -> None:
    version = _field(report, ("schema_version",), int)
    if version not in READABLE:
        raise InputError(f"schema_version: {version} cannot be read, only {' and '.join(map(str, READABLE))}")
    if version == BEFORE and report.get("driver") != "rounds":
        raise InputError("driver: a report of MLPerf's LoadGen cannot be read any more")
    for path, kind in _FIELDS.items():
        _field(report, path, kind)
    for name in report["candidates"]:
        _validate_candidate(report, name)
    for name, entry in report["candidates"].items():
        _validate_turns(entry, report["candidates"].get(report["baseline"]), name)


def _validate_candidate(report: dict[str, Any], name: str) -> None:
    given = ("candidates", name)
    for key, kind in (("status", str), ("precision", str), ("tolerance", float)):
        _field(report, (*given, key), kind)
    for check in _field(report, (*given, "parity"), dict, null=True) or ():
        _field(report, (*given, "parity", check, "passed"), bool)
    for key in _KEYS:
        if _field(report, (*given, key), dict, null=True) is None:
            continue
        seconds = _field(report, (*given, key, "seconds"), list)
        least, most = _SECONDS
        wrong = [value for value in seconds if type(value) not in {int, float} or not least < value < most]
        if wrong or not seconds:
            shown = reprlib.repr(wrong[0]) if wrong else "an empty list"
            raise InputError(
                f"{'.'.join((*given, key, 'seconds'))}: {shown} is not allowed, only positive numbers, at least one"
            )


def _validate_turns(entry: dict[str, Any], baseline: dict[str, Any] | None, name: str) -> None:
    """In rounds, entry i of every candidate is of round i."""
    for key in _KEYS:
        if baseline and entry[key] and baseline[key]:
            counts = [len(each[key]["seconds"]) for each in (entry, baseline)]
            if counts[0] != counts[1]:
                raise InputError(
                    f"candidates.{name}.{key}.seconds: {counts[0]} rounds, but the baseline has {counts[1]}"
                )


def _field(document: Any, path: tuple[str, ...], kind: type, *, null: bool = False) -> Any:
    """The value at `path`, of type `kind`, or null where that is allowed."""
    value = document
    for depth, name in enumerate(path):
        if not isinstance(value, dict) or name not in value:
            raise InputError(f"{'.'.join(path[: depth + 1])}: is missing")
        value = value[name]
    kinds = {int, float} if kind is float else {kind}  # not bool, which is an int too
    good = (null and value is None) or (type(value) in kinds and (kind is not float or math.isfinite(value)))
    if not good:
        raise InputError(
            f"{'.'.join(path)}: {reprlib.repr(value)} is not allowed, only {_KINDS[kind]}{' or null' if null else ''}"
        )
    return value
