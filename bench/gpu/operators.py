"""Our operators at every shape the network uses: time, bandwidth beside a copy of as many bytes,
parity.

Two tables. "operators" has each kernel operator alone. "passes" has everything between two
convolutions: by our operators, by plain torch in the storage type (see `passes`), and by that
compiled.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sprfast.bench.core import timing
from sprfast.bench.core.hardware import copying
from sprfast.bench.gpu.calls import Call, recorded
from sprfast.bench.gpu.passes import Pass, distinct
from sprfast.config import Precision
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import reference, trials
from sprfast.system import environment

SCHEMA_VERSION = 1
COMPILE_SECONDS = 60.0  # for one pass
PLAIN_TOLERANCE = 3e-2  # plain torch rounds to the storage type after every step
Save = Callable[[dict[str, Any]], None]
Check = dict[str, Any]
WARM_CALLS = 4  # of an operator, on the same memory
TABLES = ("operators", "passes")


@torch.inference_mode()
def measure(
    model: Model,
    device: torch.device,
    images: int,
    height: int,
    width: int,
    precision: Precision = "bfloat16",
    *,
    seconds: float = math.inf,
    repeats: int = 5,
    tables: Collection[str] = TABLES,
    operators: Any = kernels,
    save: Save = lambda report: None,
) -> dict[str, Any]:
    """The tables.

    A result that is not the reference's in float64, on random data, has no speed. What did not fit
    into `seconds` is listed as not measured.

    Args:
        model: only its network and schedule matter.
        device: CUDA, or the CPU in Triton's interpreter, where times mean nothing.
        images, height, width: of one call of the network.
        seconds: after which no row is begun.
        repeats: samples behind each median.
        tables: which of the two, in `TABLES`.
        operators: `sprfast.kernels`, or anything with its functions.
        save: called with the report after each row.

    Returns:
        The report, plain JSON values. Of a row, `bytes` is the algorithmic minimum (every tensor
        read or written once), `gb_per_s` that over the median time, `percent_of_copy` the time of a
        copy that moves as many bytes over the median time. These times are of memory that is in no
        cache; an operator's `warm_us` is of the same memory again and again, which a small map
        finds in the level-2 cache, as within a call.
    """
    deadline = time.monotonic() + seconds
    calls = recorded(model, images, height, width, precision)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment.describe(device),
        "device": str(device),
        "input": {"images": images, "draws": model.schedule.draws, "height": height, "width": width},
        "network": model.network.to_json(),
        "precision": precision,
        "operators": [],
        "passes": [],
    }
    for call in {call.key: call for call in calls}.values() if "operators" in tables else ():
        count = sum(each.key == call.key for each in calls)
        row = {"operator": call.operator, "shape": call.shape, "calls": count, "bytes": call.bytes}
        report["operators"].append(row | _guarded(deadline, _operator, call, device, operators, repeats))
        save(report)
    for each in distinct(calls) if "passes" in tables else ():
        names = [call.operator for call in each.calls]
        row = {"pass": each.name, "operators": names, "shape": each.calls[0].shape, "bytes": each.bytes}
        report["passes"].append(row | _guarded(deadline, _pass, each, device, operators, repeats, deadline))
        save(report)
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """One sentence for each row in which our operators have no speed."""
    rows = [
        (f"{row.get('operator') or row['pass']} {row['shape']}", row)
        for row in (*report["operators"], *report["passes"])
    ]
    return [f"{name}: {row['status']}, {row['reason']}" for name, row in rows if row["status"] != "measured"]


def _guarded(deadline: float, row: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    if time.monotonic() > deadline:
        return {"status": "not measured", "reason": "out of time"}
    try:
        return row(*given)
    except Exception as error:  # the other rows are still worth having
        return {"status": "failed", "reason": timing.failure(error)}


def _operator(call: Call, device: torch.device, operators: Any, repeats: int) -> dict[str, Any]:
    operator = getattr(operators, call.operator)
    given = call.fresh(device)
    got = trials.results(given, operator(*given.values()))
    parity = _compared(got, trials.truth(call.operator, given), 1)
    if not _passed(parity):
        return _wrong(parity)
    seeds = range(timing.working_sets(call.bytes, device))
    ours = [functools.partial(operator, *call.fresh(device, seed).values()) for seed in seeds]
    clocks = {
        "ours": timing.captured(ours, device),
        "warm": timing.captured(ours[:1] * WARM_CALLS, device),
        "copy": copying(call.bytes, device),
    }
    times = timing.spreads(clocks, repeats)
    warm = {"warm_us": 1e6 * times["warm"]["median"]}
    return {"status": "measured", "parity": parity, **_speed(call.bytes, times["ours"], times["copy"]), **warm}


def _pass(each: Pass, device: torch.device, operators: Any, repeats: int, deadline: float) -> dict[str, Any]:
    inputs = [each.inputs(device, seed) for seed in range(timing.working_sets(each.bytes, device))]
    plain = [each.plain_arguments(given) for given in inputs]
    expected = each.ours(reference, *[trials.widened(arguments) for arguments in inputs[0]])
    ways: dict[str, tuple[Callable[..., dict[str, Tensor]], Sequence[Sequence[Any]], int | None]] = {
        "ours": (functools.partial(each.ours, operators), inputs, len(each.calls)),
        "eager": (functools.partial(each.plain, each.plain_function), plain, None),
        "compile": (functools.partial(each.plain, _compiled(each.plain_function, device)), plain, None),
    }
    rows: dict[str, dict[str, Any]] = {}
    clocks: dict[str, timing.Clock] = {}
    for name, (function, arguments, roundings) in ways.items():
        try:
            with timing.limited(min(COMPILE_SECONDS, deadline - time.monotonic())):
                parity = _compared(function(*arguments[0]), expected, roundings)
                rows[name] = _wrong(parity)
                if _passed(parity):
                    clocks[name] = timing.captured([functools.partial(function, *given) for given in arguments], device)
        except Exception as error:  # listed with its reason
            rows[name] = {"status": "unavailable", "reason": timing.failure(error)}
    times = timing.spreads({**clocks, "copy": copying(each.bytes, device)}, repeats)
    for name in clocks:
        rows[name] = {
            "status": "measured",
            "parity": rows[name]["parity"],
            **_speed(each.bytes, times[name], times["copy"]),
        }
    return {"status": rows["ours"]["status"], "reason": rows["ours"].get("reason"), "ways": rows}


def _compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    if device.type != "cuda":

        def refuse(*arguments: Any) -> Any:
            raise NotImplementedError("torch.compile is measured on CUDA only")

        return refuse
    torch.compiler.reset()  # every pass is compiled for its own shapes
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)


def _compared(got: dict[str, Tensor], expected: dict[str, Tensor], roundings: int | None) -> list[Check]:
    """Relative RMS error of every result against float64, null where it is not finite.

    Allowed is the self-test's tolerance for each of so many `roundings` to the storage type; for
    None, `PLAIN_TOLERANCE`.
    """
    from sprfast.kernels.triton.self_test import TOLERANCE  # needs Triton

    checks = []
    for name, truth in expected.items():
        error = trials.relative_rms(got[name], truth)
        tolerance = PLAIN_TOLERANCE if roundings is None else roundings * TOLERANCE[got[name].dtype]
        finite = error if math.isfinite(error) else None
        checks.append({"result": name, "relative_rms": finite, "tolerance": tolerance, "passed": error <= tolerance})
    return checks


def _passed(parity: list[Check]) -> bool:
    return all(check["passed"] for check in parity)


def _wrong(parity: list[Check]) -> dict[str, Any]:
    return {"status": "failed", "reason": "the result is not the reference's", "parity": parity}


def _speed(size: int, time_s: dict[str, float], copy_s: dict[str, float]) -> dict[str, Any]:
    return {
        "time_us": {key: 1e6 * value for key, value in time_s.items()},
        "gb_per_s": 1e-9 * size / time_s["median"],
        "copy_gb_per_s": 1e-9 * size / copy_s["median"],
        "percent_of_copy": 100 * copy_s["median"] / time_s["median"],
    }
