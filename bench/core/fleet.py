"""A fleet of engines that nobody has measured, simulated from the measured times of one.

Assumed: engines are alike and do not disturb each other; a call of b images takes what a straight
line through the measured batch sizes says, and no less than the shortest measured call; images come
at random times (Poisson) and are dealt to hosts in turn; a host has a link, which carries one image
after another, and a router, which sends each image to its engine with the fewest images waiting or
in work, of several the first; an idle engine takes what waits, up to a batch, at once; where the
chosen engine's queue is full the image is refused. Not in it: decoding, failures, slow starts, a
cluster's own overhead.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table

from sprfast.bench.core import report_file
from sprfast.errors import InputError

SCHEMA_VERSION = 1
# figures of a fleet and their headings
_COLUMNS = {
    "offered": "offered/s",
    "answered": "answered/s",
    "linear": "of one x engines",
    "refused": "refused",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "mean_batch": "batch",
    "busy": "busy",
}


@dataclasses.dataclass(frozen=True)
class Service:
    """Seconds of a call of b images: `fixed` + b · `each`, at least `least`."""

    fixed: float
    each: float
    least: float
    batch: int  # images of a call, at most: the largest measured

    def seconds(self, images: int) -> float:
        """Seconds of a call of so many images."""
        return max(self.fixed + images * self.each, self.least)

    @property
    def rate(self) -> float:
        """Images a second of an engine that is never idle."""
        return self.batch / self.seconds(self.batch)

    @classmethod
    def fitted(cls, measured: dict[int, float]) -> Service:
        """From seconds of a call by batch size: least squares of relative errors, neither part
        below zero.

        Raises:
            InputError: fewer than two batch sizes were measured.
        """
        if len(measured) < 2:
            raise InputError(f"fleet: times at two batch sizes are needed, the report has {len(measured)}")
        sizes, seconds = np.array(sorted(measured.items()), float).T
        relative = np.stack([1.0 / seconds, sizes / seconds], axis=1)
        (fixed, each), *_ = np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)
        if fixed < 0:
            fixed, each = 0.0, float(np.mean(seconds / sizes))
        return cls(float(fixed), float(each), float(seconds.min()), int(sizes[-1]))


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is not measured.

    Raises:
        InputError: a value is not allowed.
    """

    load: float = 0.8  # arrivals, as a share of what all engines together can do
    queue: int = 64  # images that may wait at an engine
    image_kib: float = 100.0  # of an image on the network
    link_gbit: float = 25.0  # of a host
    host: int = 8  # engines of a host, at most
    latency: float = 2e-4  # seconds, there and back
    images: int = 500_000  # simulated; half as many again come first and do not count
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"load": (0.01, 10.0), "host": (1, 1e5), "queue": (0, 1e6), "images": (100, 1e7)}
        limits |= {"image_kib": (0.0, 1e6), "link_gbit": (1e-3, 1e5), "latency": (0.0, 10.0)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name}: {getattr(self, name)!r} is not allowed, expected {least:g} to {most:g}")


def read(path: Path, candidate: str) -> dict[int, float]:
    """Median seconds of a call by batch size, of a candidate in a report of `sprfast bench` or of
    `waterfall.measure`.

    Raises:
        InputError: the file is neither, or has no times of the candidate.
    """
    report = report_file.parsed(path)
    try:
        if "batches" in report:
            entries = {batch["images"]: batch["candidates"].get(candidate) for batch in report["batches"]}
            timed = {size: each["us_per_image"] for size, each in entries.items() if each and each["us_per_image"]}
            found = {size: 1e-6 * size * each["median"] for size, each in timed.items()}
        else:
            own = max(level["draws"] for level in report["model"]["schedule"]["levels"])  # as `settings.own_draws`
            found = {
                each["batch"]: 1e-3 * each["p50_ms"]
                for each in report["settings"]["points"]
                if each["candidate"] == candidate and each["draws"] == own
            }
        if not all(size >= 1 and 0 < seconds < math.inf for size, seconds in found.items()):
            raise ValueError(f"seconds by batch size: {found}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: is no report of `sprfast bench` or of the GPU check ({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise InputError(f"{path}: has no times of {candidate} at several batch sizes")
    return found


def simulate(service: Service, engines: int, assumed: Assumptions) -> dict[str, Any]:
    """One fleet under load.

    Returns:
        `offered` and `answered` images a second, the share `refused`, `p50_ms` and `p99_ms` from
        sending an image to its answer, `mean_batch`, and `busy`, the share of time that engines
        worked.
    """
    random = np.random.default_rng([assumed.seed, engines])
    offered = assumed.load * engines * service.rate
    count = assumed.images * 3 // 2
    sent = np.cumsum(random.exponential(1.0 / offered, count))
    transfer = assumed.image_kib * 8192 / (assumed.link_gbit * 1e9)
    hosts = -(-engines // assumed.host)
    answered, batches, busy = np.empty(count), 0, 0.0
    for host in range(hosts):
        reached = _through_link(sent[host::hosts], transfer) + 0.5 * assumed.latency
        of_host = len(range(host, engines, hosts))
        answered[host::hosts], calls, seconds = _serve(reached, service, of_host, assumed.queue)
        batches, busy = batches + calls, busy + seconds
    counted = np.arange(count) >= count - assumed.images
    latency = answered[counted] + 0.5 * assumed.latency - sent[counted]
    done = ~np.isnan(latency)
    whole, served = np.nanmax(answered), np.count_nonzero(~np.isnan(answered))
    return {
        "engines": engines,
        "offered": offered,
        "answered": float(served / whole),
        "refused": float(1.0 - done.mean()),
        "p50_ms": 1e3 * float(np.nanquantile(latency, 0.5)),
        "p99_ms": 1e3 * float(np.nanquantile(latency, 0.99)),
        "mean_batch": float(served / batches),
        "busy": float(busy / (engines * whole)),
    }


def measure(path: Path, candidate: str, fleets: tuple[int, ...], assumed: Assumptions) -> dict[str, Any]:
    """The report: what was measured and assumed, and a row for each fleet.

    Raises:
        InputError: the file has no times of the candidate, or a size of a fleet is not allowed.
    """
    for engines in fleets:
        if not 1 <= engines <= 100_000:
            raise InputError(f"fleet: {engines} engines are not allowed, expected 1 to 100000")
    measured = read(path, candidate)
    service = Service.fitted(measured)
    return {
        "schema_version": SCHEMA_VERSION,
        "simulated": True,
        "report": path.name,
        "candidate": candidate,
        "measured_seconds": {str(size): seconds for size, seconds in sorted(measured.items())},
        "service": dataclasses.asdict(service) | {"rate": service.rate},
        "assumed": dataclasses.asdict(assumed),
        "fleets": [simulate(service, engines, assumed) for engines in fleets],
    }


def table(report: dict[str, Any]) -> RenderableType:
    """The same for a person, with what is assumed."""
    service, assumed = report["service"], report["assumed"]
    columns = (Column(name, justify="right") for name in ("engines", *_COLUMNS.values()))
    rows = Table(*columns, box=box.SIMPLE_HEAD, title=f"simulated: {report['candidate']}")
    for row in report["fleets"]:
        figures = {**row, "linear": row["answered"] / (row["engines"] * service["rate"])}
        rows.add_row(f"{row['engines']}", *(f"{figures[key]:.4g}" for key in _COLUMNS))
    line = f"{1e3 * service['fixed']:.3g} + {1e3 * service['each']:.3g} b ms"
    fit = f"a call of b images: {line}, b up to {service['batch']}"
    hosts = f"up to {assumed['host']} engines, {1e3 * assumed['latency']:g} ms there and back"
    link = f"{assumed['link_gbit']:g} Gbit/s for {hosts}"
    load = f"load {assumed['load']:g}; {assumed['image_kib']:g} KiB an image over {link}; queues of {assumed['queue']}"
    return Group(rows, f"{fit} (from {report['report']}); {load}")


def _through_link(sent: np.ndarray, transfer: float) -> np.ndarray:
    """When each image has left a link that carries one after another."""
    # departure i = max over j <= i of sent[j] + (i - j + 1) transfers
    order = np.arange(len(sent))
    return np.asarray(np.maximum.accumulate(sent - order * transfer) + (order + 1) * transfer)


def _serve(reached: np.ndarray, service: Service, engines: int, queue: int) -> tuple[np.ndarray, int, float]:
    """When each image is answered (NaN: refused), the number of calls, and the seconds that engines
    worked.
    """
    answered = np.full(len(reached), np.nan)
    waiting: list[list[int]] = [[] for _ in range(engines)]
    working = [0] * engines  # images in work
    shortest = [(0, engine) for engine in range(engines)]  # a heap with stale entries: images at an engine, engine
    events: list[tuple[float, int]] = []  # when an engine gets idle
    batches, busy = 0, 0.0

    def begin(engine: int, now: float) -> None:
        nonlocal batches, busy
        taken, waiting[engine] = waiting[engine][: service.batch], waiting[engine][service.batch :]
        working[engine] = len(taken)
        if taken:
            seconds = service.seconds(len(taken))
            answered[taken] = now + seconds
            batches, busy = batches + 1, busy + seconds
            heapq.heappush(events, (now + seconds, engine))
        heapq.heappush(shortest, (working[engine] + len(waiting[engine]), engine))

    for image, now in enumerate(reached.tolist()):
        while events and events[0][0] <= now:
            moment, engine = heapq.heappop(events)
            begin(engine, moment)
        while shortest[0][0] != working[shortest[0][1]] + len(waiting[shortest[0][1]]):
            heapq.heappop(shortest)
        _, engine = shortest[0]
        if working[engine] and len(waiting[engine]) >= queue:
            continue
        waiting[engine].append(image)
        if working[engine]:
            heapq.heappush(shortest, (working[engine] + len(waiting[engine]), engine))
        else:
            begin(engine, now)
    while events:
        moment, engine = heapq.heappop(events)
        begin(engine, moment)
    return answered, batches, busy
