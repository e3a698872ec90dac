"""How well scores and anomaly maps separate good from defective, from 0 to 1 and higher is better.

image_AUROC, F1_max and caught judge one score an image, pixel_AUROC and AUPRO the anomaly maps.
caught is the share of anomalous images above a threshold that at most 0.1 % of the good ones are
above: what a line that must not reject good parts would find. A metric that is not defined for the
data at hand is None with a reason, never 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sprfast.errors import InputError
from sprfast.evaluation.column import Column

KEYS = ("image_AUROC", "pixel_AUROC", "AUPRO", "F1_max", "caught")
FALSE_REJECTS = 0.001  # share of the good images that may be above the threshold at which `caught` is taken
AUPRO_LIMIT = 0.3  # false-positive rate of pixels up to which the per-region overlap is integrated


@dataclasses.dataclass(frozen=True)
class Metric:
    """`value` in [0, 1], or None and the `reason` in one sentence; exactly one of the two is
    None.
    """

    value: float | None
    reason: str | None = None


def evaluate(
    scores: ArrayLike, labels: ArrayLike, maps: ArrayLike | None, masks: ArrayLike | None
) -> dict[str, Metric]:
    """The metrics of one category, under the names in `KEYS`.

    Args:
        scores: (N,) float, the image scores; higher is more anomalous.
        labels: (N,) 0 for a good image, 1 for an anomalous one.
        maps: (N, 256, 256) float32, the anomaly maps, or None where there are none.
        masks: (N, 256, 256) bool, True on a defect, or None where the data has no ground truth.

    Raises:
        InputError: shapes that do not belong together, a label other than 0 and 1, a NaN or
            infinite score or map, or a good image whose mask has a defect.
    """
    scores, labels = _image_arrays(scores, labels)
    if maps is None or masks is None:
        missing = Metric(None, "no anomaly maps were given" if maps is None else "the data has no ground-truth masks")
        results = _of_scores(scores, labels) | {"pixel_AUROC": missing, "AUPRO": missing}
        return {key: results[key] for key in KEYS}
    maps, masks = np.asarray(maps), np.asarray(masks)
    if maps.ndim != 3 or maps.shape != masks.shape or len(maps) != len(labels):
        raise InputError(
            f"maps and masks: shapes {maps.shape} and {masks.shape}, expected ({len(labels)}, H, W) for both"
        )
    return evaluate_each(scores, labels, zip(maps, masks, strict=True))


def evaluate_each(
    scores: ArrayLike, labels: ArrayLike, pixels: Iterable[tuple[ArrayLike, ArrayLike]]
) -> dict[str, Metric]:
    """`evaluate` with a map and a mask of one image after the other, none of which stays in memory.

    Pixels go to temporary files, 4 bytes each and 24 more where there is a defect.

    Raises:
        InputError: see `evaluate`; or there is no room for the files.
    """
    scores, labels = _image_arrays(scores, labels)
    with contextlib.ExitStack() as stack:
        results = _of_scores(scores, labels) | _of_pixels(_checked(pixels, labels), stack)
    return {key: results[key] for key in KEYS}


def mean(rows: Sequence[dict[str, Metric]]) -> dict[str, Metric]:
    """The mean of each metric over categories; None where a category has it undefined.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("mean of metrics: no categories were given")
    result = {}
    for key in KEYS:
        defined = [metric.value for metric in (row[key] for row in rows) if metric.value is not None]
        if undefined := len(rows) - len(defined):
            result[key] = Metric(None, f"undefined in {undefined} of {len(rows)} categories")
        else:
            result[key] = Metric(float(np.mean(defined)))
    return result


def _image_arrays(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"scores and labels: shapes {scores.shape} and {labels.shape}, expected (N,) for both")
    if not np.issubdtype(scores.dtype, np.floating):
        raise InputError(f"scores: {scores.dtype}, expected floats")
    _finite("scores", scores)
    if not np.isin(labels, (0, 1)).all():
        raise InputError("labels: expected 0 for a good image and 1 for an anomalous one, nothing else")
    return scores, labels.astype(bool)


def _checked(
    pixels: Iterable[tuple[ArrayLike, ArrayLike]], labels: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]]:
    """Map and mask of each image, once they are what they must be."""
    for index, (label, pair) in enumerate(zip(labels, pixels, strict=True)):
        map_, mask = map(np.asarray, pair)
        if map_.ndim != 2 or map_.shape != mask.shape:
            raise InputError(
                f"maps and masks: image {index} has shapes {map_.shape} and {mask.shape}, expected (H, W) for both"
            )
        if not np.issubdtype(map_.dtype, np.floating) or mask.dtype != np.bool_:
            raise InputError(f"maps and masks: {map_.dtype} and {mask.dtype}, expected float and bool")
        if not np.isfinite(map_).all():
            raise InputError(f"maps: image {index} has a NaN or infinite value, expected finite numbers")
        if not label and mask.any():
            raise InputError(f"masks: image {index} is labelled good and its mask has a defect")
        yield map_, mask


def _finite(name: str, values: NDArray[np.floating[Any]]) -> None:
    if not np.isfinite(values).all():
        index = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0]
        raise InputError(f"{name}: image {index} has a NaN or infinite value, expected finite numbers")


def _undefined(anomalous: NDArray[np.bool_], none: str, all_: str) -> Metric | None:
    """The metric of what is all of one kind, with the reason for none or all of it being anomalous;
    None where there are both kinds.
    """
    if not anomalous.any():
        return Metric(None, none)
    return Metric(None, all_) if anomalous.all() else None


def _of_scores(scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> dict[str, Metric]:
    """image_AUROC, F1_max and caught."""
    from sklearn.metrics import precision_recall_curve, roc_auc_score  # type: ignore[import-untyped]

    if undefined := _undefined(labels, "there are no anomalous images", "there are no good images"):
        return dict.fromkeys(("image_AUROC", "F1_max", "caught"), undefined)
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall  # 0 where no anomalous image is above the threshold
    f1 = 2 * precision * recall / np.where(total == 0, 1, total)
    good = np.sort(scores[~labels])
    threshold = good[-1 - math.floor(FALSE_REJECTS * good.size)]
    return {
        "image_AUROC": Metric(float(roc_auc_score(labels, scores))),
        "F1_max": Metric(float(np.max(f1))),
        "caught": Metric(float(np.mean(scores[labels] > threshold))),
    }


def _of_pixels(
    pixels: Iterator[tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]], stack: contextlib.ExitStack
) -> dict[str, Metric]:
    """pixel_AUROC, and AUPRO: the mean overlap of the defect regions against the false-positive
    rate, integrated to AUPRO_LIMIT.

    As the threshold falls past the value of a defect pixel, the true-positive rate rises by 1 /
    (defect pixels), and the mean overlap by that pixel's share of its region. So each defect pixel
    adds that times the part of the false-positive axis that lies beyond the rate reached there:
    exact over all thresholds, from one sort of the good pixels. Good pixels of the same value make
    the rise a ramp, which is a tie taken as one step.

    Every column is a file, worked on in parts and added up by numpy as one array, so that the
    numbers are those of arrays in memory to the last bit.
    """
    good, defect, sizes, rates, areas = (stack.enter_context(contextlib.closing(Column())) for _ in range(5))
    regions = 0
    for map_, mask in pixels:
        good.append(map_[~mask])
        defect.append(map_[mask])
        of_image, count = _region_sizes(mask)
        sizes.append(of_image)
        regions += count
    none, all_ = "every ground-truth mask is empty", "the ground-truth masks leave no good pixel"
    if not (len(good) and len(defect)):
        undefined = Metric(None, all_ if len(defect) else none)
        return {"pixel_AUROC": undefined, "AUPRO": undefined}
    values = good.array()
    values.sort()
    for part, size in zip(defect.parts(), sizes.parts(), strict=True):
        before = (values.size - np.searchsorted(values, part, side="right")) / values.size  # where the rise starts
        after = (values.size - np.searchsorted(values, part, side="left")) / values.size  # and where it is complete
        rates.append((before + after) / 2)
        start, end = np.minimum(before, AUPRO_LIMIT), np.minimum(after, AUPRO_LIMIT)
        ramp = np.where(after > before, (end - start) ** 2 / (2 * np.where(after > before, after - before, 1)), 0)
        areas.append((1.0 / (size * regions)) * (ramp + AUPRO_LIMIT - end))
    auroc = float(1.0 - np.mean(rates.array()))
    # rounded shares can exceed 1 by an ulp
    area = np.sum(areas.array())
    return {"pixel_AUROC": Metric(auroc), "AUPRO": Metric(float(min(area / AUPRO_LIMIT, 1.0)))}


def _region_sizes(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """(P,) for each defect pixel the pixels of its region, in the order of map[mask]; and the
    number of regions.

    A region is a set of defect pixels of one image connected over sides or corners.
    """
    from scipy.ndimage import label  # type: ignore[import-untyped]

    regions, count = label(mask, structure=np.ones((3, 3), dtype=bool))
    region = regions[mask]
    return np.bincount(region)[region], count
