"""Score a labelled category with an engine or a runner: metrics, metrics per kind of defect, and
example columns.

Under torchrun the processes share the scoring; the rest is the first one's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sprfast.data import figure, images
from sprfast.data.datasets import Category, Sample
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.errors import CheckFailedError, InputError
from sprfast.evaluation import metrics
from sprfast.evaluation.column import Column
from sprfast.evaluation.metrics import Metric
from sprfast.method.anomaly_map import MAP_SIZE
from sprfast.method.threshold import Verdict

if TYPE_CHECKING:
    from sprfast.system.process_group import ProcessGroup

_Map = npt.NDArray[np.float32]

FIGURE_COLUMNS = 8
_GOOD = "good"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an engine or a runner makes of the test images of one category."""

    category: str
    metrics: dict[str, Metric]  # over all test images
    kinds: dict[str, dict[str, Metric]]  # each kind of defect against the good images
    images: int
    rejected_good: tuple[int, int] | None  # good images above the threshold, and good images; None without a threshold
    samples: tuple[Sample, ...]
    results: tuple[Result, ...]  # without maps

    def to_json(self) -> dict[str, Any]:
        """Plain values; an undefined metric is null, with its reason beside it."""
        rejected = {"rejected_good": self.rejected_good[0], "good": self.rejected_good[1]} if self.rejected_good else {}
        return {
            "category": self.category,
            "images": self.images,
            **metrics_json(self.metrics),
            "kinds": {kind: metrics_json(row) for kind, row in self.kinds.items()},
            **rejected,
        }


def metrics_json(row: dict[str, Metric]) -> dict[str, Any]:
    """Metric values by name, and under `undefined` the reasons of those that are null."""
    values: dict[str, Any] = {name: metric.value for name, metric in row.items()}
    undefined = {name: metric.reason for name, metric in row.items() if metric.value is None}
    return values | ({"undefined": undefined} if undefined else {})


def evaluate(
    engine: Predictor, category: Category, on_image: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation:
    """Score every test image of `category` in this process.

    Args:
        engine: an `Engine` or a `Runner`.
        on_image: called with the number of images done and their total.

    Raises:
        InputError: there are no test images, or one of them cannot be scored.
    """
    with Scored() as scored:
        for part in score(engine, category, on_image):
            scored.add(part)
        return summarise(engine, category, scored)


def evaluate_among(
    group: ProcessGroup,
    engine: Predictor,
    category: Category,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_maps: Callable[[Evaluation, _Map], None] = lambda evaluation, maps: None,
) -> Evaluation | None:
    """Evaluate with the scoring shared among the processes of `group`; None on all but the first.

    Args:
        on_maps: called in the first process, before it returns, with the evaluation and the anomaly
            maps (N, 256, 256) of its samples.

    Raises:
        InputError: see `evaluate`.
        CheckFailedError: another process is gone, or has other test images.
    """
    with Scored() as scored:
        for own in score(engine, category, on_image, group.rank, group.world_size):
            for part in group.gather(own) or ():
                scored.add(part)
        if group.rank:
            return None
        if scored.names != [_name(sample) for sample in category.test]:
            raise CheckFailedError(
                f"{category.name}: not every test image was scored once: give all processes the same model and data"
            )
        evaluation = summarise(engine, category, scored)
        on_maps(evaluation, scored.maps())
        return evaluation


def score(
    engine: Predictor, category: Category, on_image: Callable[[int, int], None], rank: int = 0, world_size: int = 1
) -> Iterator[list[tuple[str, Result]]]:
    """Names and results of this process's test images, call by call; all processes together make
    the calls that one would make.

    In round i process r has the `MAX_BATCH` images from (i·world_size + r)·MAX_BATCH on, in the
    last round fewer or none.

    Raises:
        InputError: there are no test images.
    """
    samples = category.test
    if not samples:
        raise InputError(f"{category.name}: there are no test images to evaluate")
    together = MAX_BATCH * world_size
    for first in range(0, len(samples), together):
        mine = samples[first : first + together][rank * MAX_BATCH : (rank + 1) * MAX_BATCH]
        yield list(zip(map(_name, mine), engine.predict([sample.path for sample in mine]), strict=True))
        on_image(min(first + together, len(samples)), len(samples))


class Scored:
    """Names and results of test images, without their maps; anomaly maps are in a file."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.results: list[Result] = []
        self._maps = Column()

    def __enter__(self) -> Scored:
        return self

    def __exit__(self, *error: object) -> None:
        self._maps.close()

    def add(self, part: Sequence[tuple[str, Result]]) -> None:
        """The next images; one that could not be scored has no map, and ends `summarise`."""
        for name, result in part:
            self.names.append(name)
            self.results.append(dataclasses.replace(result, anomaly_map=None, error_map=None))
            if result.anomaly_map is not None:
                self._maps.append(result.anomaly_map.reshape(-1))

    def maps(self) -> _Map:
        """(N, 256, 256), mapped into memory; all images have been scored."""
        return self._maps.array().reshape(-1, MAP_SIZE, MAP_SIZE)


def summarise(engine: Predictor, category: Category, scored: Scored) -> Evaluation:
    """Metrics of the results of all test images, in their order.

    Raises:
        InputError: an image could not be scored.
    """
    samples, results = category.test, scored.results
    for sample, result in zip(samples, results, strict=True):
        if not np.isfinite(result.pred_score):
            raise InputError(f"{images.display_name(sample.path)}: cannot be scored ({result.reason})")
    maps = scored.maps()

    def row(kinds: Collection[str]) -> dict[str, Metric]:
        chosen = [i for i, sample in enumerate(samples) if not sample.label or sample.kind in kinds]
        return _row([samples[i] for i in chosen], [results[i].pred_score for i in chosen], (maps[i] for i in chosen))

    kinds = sorted({sample.kind for sample in samples if sample.label})
    good = [result for sample, result in zip(samples, results, strict=True) if not sample.label]
    rejected = sum(result.verdict is not Verdict.PASS for result in good)
    rejected_good = (rejected, len(good)) if engine.threshold else None
    of_kinds = {kind: row([kind]) for kind in kinds}
    return Evaluation(category.name, row(kinds), of_kinds, len(results), rejected_good, samples, tuple(results))


def write_figure(evaluation: Evaluation, engine: Predictor, path: Path) -> None:
    """The figure of the paper's supplement: examples of each kind; input image, error map, ground
    truth.
    """
    columns = []
    for sample, result in _examples(evaluation):
        error_map = engine.predict(sample.path).error_map  # again: it was not kept
        if error_map is None:
            raise InputError(f"{images.display_name(sample.path)}: cannot be scored any more")
        picture = images.read_rgb(sample.path, engine.preprocessing)
        columns.append(figure.Column(sample.kind, picture, error_map, _mask(sample), result.pred_score))
    figure.evaluation_figure(columns, path)


def _name(sample: Sample) -> str:
    return f"{sample.kind}/{sample.path.name}"


def _row(samples: Sequence[Sample], scores: Sequence[float], maps: Iterable[_Map]) -> dict[str, Metric]:
    labels = np.array([sample.label for sample in samples])
    if any(sample.label and sample.mask is None for sample in samples):
        return metrics.evaluate(np.array(scores), labels, (), None)
    return metrics.evaluate_each(np.array(scores), labels, zip(maps, map(_mask, samples), strict=True))


def _mask(sample: Sample) -> npt.NDArray[np.bool_]:
    return images.load_mask(sample.mask) if sample.mask else np.zeros((256, 256), dtype=bool)


def _examples(evaluation: Evaluation) -> list[tuple[Sample, Result]]:
    """A good image and defects of each kind in turn: those whose scores are nearest to their kind's
    median.
    """
    by_kind: dict[str, list[tuple[Sample, Result]]] = {}
    for each in zip(evaluation.samples, evaluation.results, strict=True):
        by_kind.setdefault(each[0].kind, []).append(each)
    for members in by_kind.values():
        median = np.median([result.pred_score for _, result in members])
        members.sort(key=lambda each: abs(each[1].pred_score - median))
    good = by_kind.pop(_GOOD, [])[:1]
    turns = [members[turn] for turn in range(FIGURE_COLUMNS) for members in by_kind.values() if turn < len(members)]
    return good + sorted(turns[: FIGURE_COLUMNS - len(good)], key=lambda each: each[0].kind)
