"""The steps of a GPU check: what each measures, how long it may take, and which ones make a call.

Run as a program with a `Job` in JSON, this is one step in a process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sprfast.bench.core import report_file
from sprfast.bench.gpu import convolution_turns, determinism, efficientad, operators, roofline, timeline, waterfall
from sprfast.bench.gpu.operators import Save
from sprfast.bench.gpu.truth import FILE, Truths, compute
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import InputError
from sprfast.evaluation import parity
from sprfast.evaluation.calibration import SETTINGS
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden" / "golden.json"
TURN = 50  # calls of a candidate at one image before the next one has its turn
# For the sanitizers, which slow kernels down many times: odd sizes, and the smallest map of the
# network. No CUDA graphs: see `check`.
SANITIZED = "test_operator_equals_its_reference and (2x64x199x150 or 1x512x12x12)"


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a call."""

    name: str
    seconds: float  # that it may take, starting included; infinite: what the others leave
    images: tuple[int, ...] = ()  # numbers of images in a call of the network


REST = math.inf
# The most wanted first: a call that is cut loses the last.
CALLS: dict[int, tuple[Step, ...]] = {
    1: (
        Step("turns", 100.0, (1, 32)),  # it compiles all kernels first
        Step("timeline", 40.0, (1, 32)),
        Step("operators", 75.0, (1, 32)),
        Step("convolutions", 30.0, (1, 32)),
        Step("convolutions_all_plans", 40.0, (1, 32)),
        Step("threads", 35.0),
        Step("compile_library", 70.0, (32,)),
        Step("compile", REST, (32,)),
    ),
    2: (
        Step("turns", 85.0, (1, 32)),
        Step("timeline", 40.0, (1, 32)),
        Step("operators", 75.0, (1, 32)),
        Step("efficientad", 50.0, (1, 32)),
        Step("single", 40.0, (32,)),
        Step("own_convolutions", 75.0, (32, 1)),
        Step("compile_library", 65.0, (1,)),
        Step("compile", 90.0, (1,)),
        Step("passes", REST, (32,)),
    ),
    3: (
        Step("tests", 280.0),
        Step("replays", 50.0, (1, 32)),
        Step("memcheck", 110.0),
        Step("racecheck", REST),
    ),
}
# In no call: the first needs no GPU, the second has every candidate, and takes ten minutes.
OTHERS = (Step("truth", REST, (1, 32)), Step("waterfall", REST, (32, 1, 8)))
KNOWN = tuple(dict.fromkeys(step.name for step in (*sum(CALLS.values(), ()), *OTHERS)))


def planned(call: int, names: Sequence[str] = (), images: Sequence[int] = ()) -> list[Step]:
    """The steps of a call, or those named, as they are in it or else in another; all of them at
    `images`, if any.

    Raises:
        InputError: no such step.
    """
    found: list[Step] = []
    for name in names:
        if name not in KNOWN:
            raise InputError(f"--steps: {name!r} is not allowed, choose from {', '.join(KNOWN)}")
        everywhere = (*CALLS[call], *sum(CALLS.values(), ()), *OTHERS)
        found.append(next(step for step in everywhere if step.name == name))
    chosen = found or list(CALLS[call])
    return [dataclasses.replace(step, images=tuple(images)) if images and step.images else step for step in chosen]


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process measures."""

    step: str
    folder: str  # where its report goes, and the file of truths lies
    deadline: float  # on the machine's monotonic clock; after it nothing is begun
    images: tuple[int, ...]
    turn: int
    dry_run: bool

    @property
    def seconds(self) -> float:
        """What is left."""
        return self.deadline - time.monotonic()

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    size: int  # pixels, both sides
    images: int  # in a call of the network, at most
    turn: int  # calls of a candidate in turn, at most
    given: dict[str, dict[str, Any]]  # what else `measure` is given, by step


FULL = Scale("cuda", 192, 2**20, 2**20, {})
DRY = Scale(
    "cpu",
    16,
    2,
    1,
    {
        "turns": {"minimum": 1},
        "single": {"minimum": 1},
        "compile": {"minimum": 1},
        "compile_library": {"minimum": 1},
        "waterfall": {"minimum": 1},
        "timeline": {"replays": 3},
        "operators": {"repeats": 1},
        "passes": {"repeats": 1},
        "convolutions": {"matrix": 64, "copied": 2**20, "repeats": 1},
        "convolutions_all_plans": {"matrix": 64, "copied": 2**20, "repeats": 1},
        "own_convolutions": {"precision": "float16", "repeats": 1, "kinds": 2},
        "threads": {"calls": 4},
        "replays": {"times": 3},
        "efficientad": {"minimum": 1, "budget": 0.0},
    },
)


def model(scale: Scale) -> Model:
    """The network of the golden outputs; a narrow random one for a dry run."""
    preprocessing = Preprocessing(size=scale.size)
    if scale.device != "cpu":
        weights = parity.golden_weights(json.loads(GOLDEN.read_text()))
        return Model(NetworkConfig(), ScoringMode(), preprocessing, weights)
    torch.manual_seed(0)
    network = NetworkConfig(base_width=32, embedding_dim=8)
    weights = {name: value.detach() for name, value in unet.ScoreUNet(network).state_dict().items()}
    return Model(network, ScoringMode(Schedule((Level(draws=1),))), preprocessing, weights)


def single(given: Model) -> Model:
    """The same network in the scoring mode `single`: one draw."""
    return dataclasses.replace(given, scoring_mode=ScoringMode(SETTINGS["single"].schedule))


OURS = ("triton_bfloat16", "cuda_graph_bfloat16")
# which candidates of the waterfall
CANDIDATES = {
    "turns": ("published", "eager_bfloat16", *OURS),
    "single": ("eager_bfloat16", "cuda_graph_bfloat16"),
    "compile_library": ("cuda_graph_bfloat16", waterfall.COMPILED_LIBRARY),
    "compile": ("cuda_graph_bfloat16", waterfall.COMPILED),
    "waterfall": tuple(candidate.name for candidate in waterfall.CANDIDATES),
}
Measure = Callable[..., dict[str, Any]]
Problems = Callable[[dict[str, Any]], list[str]]
MEASURES: dict[str, tuple[Measure, Problems]] = {
    **dict.fromkeys(CANDIDATES, (waterfall.measure, waterfall.problems)),
    "timeline": (timeline.measure, lambda report: []),
    **dict.fromkeys(("convolutions", "convolutions_all_plans"), (roofline.measure, lambda report: [])),
    "own_convolutions": (convolution_turns.measure, convolution_turns.problems),
    "replays": (determinism.replays, determinism.problems),
    "efficientad": (efficientad.measure, efficientad.problems),
}


def run(job: Job) -> list[str]:
    """Measure; the report goes to `folder`/`step`.json as it grows. One sentence for each thing
    that is wrong.
    """
    scale = DRY if job.dry_run else FULL
    path = Path(job.folder) / f"{job.step}.json"
    save = functools.partial(report_file.write, path=path)
    images = tuple(dict.fromkeys(min(count, scale.images) for count in job.images))
    job = dataclasses.replace(job, images=images, turn=min(job.turn, scale.turn))
    network, size = model(scale), {"height": scale.size, "width": scale.size}
    given: dict[str, Any] = {**size, **scale.given.get(job.step, {})}
    device, truths = torch.device(scale.device), Path(job.folder) / FILE
    if job.step == "truth":
        compute((network, single(network)), job.images, **size, path=truths)
        return []
    if job.step in ("operators", "passes"):
        return _by_batch(job, network, device, given, save)
    if job.step == "threads":
        return determinism.problems(determinism.threads(network, device, **given, save=save))
    measure, problems = MEASURES[job.step]
    if job.step in CANDIDATES:
        wanted = [each for each in waterfall.CANDIDATES if each.name in CANDIDATES[job.step]]
        given |= {"candidates": wanted, "seconds": job.seconds, "truths": Truths.load(truths), "turn": job.turn}
    if job.step == "efficientad":
        given["turn"] = job.turn
    if job.step == "own_convolutions":
        given["seconds"] = job.seconds
    if job.step == "convolutions_all_plans":
        given["plans"] = 0
    if job.step == "single":
        network = single(network)
    return problems(measure(network, device, job.images, **given, save=save))


def _by_batch(job: Job, network: Model, device: torch.device, given: dict[str, Any], save: Save) -> list[str]:
    """One table of the operators at every number of images; the time is shared evenly."""
    whole: dict[str, Any] = {"schema_version": operators.SCHEMA_VERSION, "batches": []}
    problems = []
    for index, images in enumerate(job.images):
        whole["batches"].append({})

        def save_part(part: dict[str, Any]) -> None:
            whole["batches"][-1] = part
            save(whole)

        seconds = job.seconds / (len(job.images) - index)
        part = operators.measure(network, device, images, **given, seconds=seconds, tables=(job.step,), save=save_part)
        problems += [f"{images} images: {problem}" for problem in operators.problems(part)]
    return problems


def command(job: Job) -> list[str]:
    """The command line of a step."""
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    if job.step == "tests":
        return [*pytest, f"--junitxml={job.folder}/tests.xml", "tests"]
    if job.step in ("memcheck", "racecheck"):
        only = ["--report-api-errors", "no"] if job.step == "memcheck" else []
        sanitizer = ["compute-sanitizer", "--tool", job.step, *only, "--error-exitcode", "1"]
        return [*sanitizer, *pytest, "-k", SANITIZED, "tests/kernels/triton/test_kernels_gpu.py"]
    return [sys.executable, "-m", "sprfast.bench.gpu.steps", job.to_json()]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = run(Job(**{**given, "images": tuple(given["images"])}))
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(int(bool(found)))
