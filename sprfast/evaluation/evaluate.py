"""Score a labelled category with an engine or a runner: metrics, metrics per kind of defect, and
example columns.

Under torchrun the processes share the scoring; the rest is the first one's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprfast.data import figure, images
from sprfast.data.datasets import Category, Sample
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.errors import CheckFailedError, InputError
from sprfast.evaluation import metrics
from sprfast.evaluation.metrics import Metric
from sprfast.method.threshold import Verdict

if TYPE_CHECKING:
    from sprfast.system.process_group import ProcessGroup

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
    results: tuple[Result, ...]

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
    return summarise(engine, category, [result for part in score(engine, category, on_image) for _, result in part])


def evaluate_among(
    group: ProcessGroup,
    engine: Predictor,
    category: Category,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation | None:
    """Evaluate with the scoring shared among the processes of `group`; None on all but the first.

    Raises:
        InputError: see `evaluate`.
        CheckFailedError: another process is gone, or has other test images.
    """
    gathered: list[tuple[str, Result]] = []
    for own in score(engine, category, on_image, group.rank, group.world_size):
        for part in group.gather(own) or ():
            gathered += part
    if group.rank:
        return None
    if [name for name, _ in gathered] != [_name(sample) for sample in category.test]:
        raise CheckFailedError(
            f"{category.name}: not every test image was scored once: give all processes the same model and data"
        )
    return summarise(engine, category, [result for _, result in gathered])


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


def summarise(engine: Predictor, category: Category, results: Sequence[Result]) -> Evaluation:
    """Metrics of the results of all test images, in their order.

    Raises:
        InputError: an image could not be scored.
    """
    scored = list(zip(category.test, results, strict=True))
    for sample, result in scored:
        if result.anomaly_map is None or not np.isfinite(result.pred_score):
            raise InputError(f"{images.display_name(sample.path)}: cannot be scored ({result.reason})")
    rows = {}
    for kind in sorted({sample.kind for sample in category.test if sample.label}):
        rows[kind] = _row([(sample, result) for sample, result in scored if not sample.label or sample.kind == kind])
    good = [result for sample, result in scored if not sample.label]
    rejected = sum(result.verdict is not Verdict.PASS for result in good)
    rejected_good = (rejected, len(good)) if engine.threshold else None
    return Evaluation(category.name, _row(scored), rows, len(scored), rejected_good, category.test, tuple(results))


def write_figure(evaluation: Evaluation, engine: Predictor, path: Path) -> None:
    """The figure of the paper's supplement: examples of each kind; input image, error map, ground
    truth.
    """
    columns = []
    for sample, result in _examples(evaluation):
        assert result.error_map is not None  # evaluate() refuses images without one
        picture = images.read_rgb(sample.path, engine.preprocessing)
        column = figure.Column(sample.kind, picture, result.error_map, _mask(sample), result.pred_score)
        columns.append(column)
    figure.evaluation_figure(columns, path)


def _name(sample: Sample) -> str:
    return f"{sample.kind}/{sample.path.name}"


def _row(scored: Sequence[tuple[Sample, Result]]) -> dict[str, Metric]:
    scores = np.array([result.pred_score for _, result in scored])
    labels = np.array([sample.label for sample, _ in scored])
    maps = np.stack([_map(result) for _, result in scored])
    missing = any(sample.label and sample.mask is None for sample, _ in scored)
    masks = None if missing else np.stack([_mask(sample) for sample, _ in scored])
    return metrics.evaluate(scores, labels, maps, masks)


def _map(result: Result) -> np.ndarray:
    assert result.anomaly_map is not None  # evaluate() refuses images without one
    return result.anomaly_map


def _mask(sample: Sample) -> np.ndarray:
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
