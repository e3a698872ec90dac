"""Results of a model on images as one HTML page that needs nothing else: scores and the threshold,
what was judged wrongly first, and how it was computed.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sprfast.data import images
from sprfast.data.datasets import Sample
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import InputError
from sprfast.evaluation.thumbnails import Thumbnails
from sprfast.method.threshold import relative
from sprfast.system import environment, files
from sprfast.system.libraries import require

if TYPE_CHECKING:
    from sprfast.evaluation.evaluate import Evaluation

MOST_IMAGES = 100_000  # of a page
MOST_BYTES = 49_000_000  # of the rows in a page, and of pictures where rows leave room; its frame has 40 kB
_BLOCK = 100  # images whose pictures a browser decodes together
_FILES = ("results_pictures.js", "results_page.js", "results_page.css")
_HERE = Path(__file__).parent
_VERSIONS = ("date_utc", "sprfast", "git_commit", "python", "torch", "numpy", "platform", "cpu")


class ResultsPage:
    """A page that is gathered image by image, then written.

    Args:
        path: of the page.
        engine: what scores the images.
        model: the file that it was opened from.
        setting: the scoring mode's name.
        count: images that there will be.

    Raises:
        InputError: too many images for a page, or `path` cannot be written.
        BackendError: Jinja is not installed.
    """

    def __init__(self, path: Path, engine: Predictor, model: Path, setting: str, count: int) -> None:
        require_possible(path, count)
        self._path, self._engine, self._model, self._setting = path, engine, model, setting
        self._thumbnails = Thumbnails(0.72 * MOST_BYTES / max(1, count))
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> ResultsPage:
        return self

    def __exit__(self, *error: object) -> None:
        self._thumbnails.close()

    def add(self, path: Path, result: Result, sample: Sample | None = None) -> None:
        """The next image, scored with its anomaly map; `sample` says what it is, where that is
        known.

        Raises:
            InputError: its mask cannot be read, or there is no room for temporary files.
        """
        mask = images.load_mask(sample.mask) if sample and sample.mask else None
        self._thumbnails.add(path, self._engine.preprocessing, result.anomaly_map, self._map_end, mask)
        self._rows.append(
            {
                "number": len(self._rows),
                "name": images.display_name(path.name if sample else path),
                "kind": images.display_name(sample.kind) if sample else None,
                "label": sample.label if sample else None,
                "score": result.pred_score if math.isfinite(result.pred_score) else None,
                "verdict": result.verdict.value,
                "reason": result.reason,
                "size": result.source_size,
            }
        )

    def write(self, title: str, evaluation: Evaluation | None = None, *, complete: bool = True) -> None:
        """Write the page, whole or not at all.

        Args:
            title: what was scored.
            evaluation: of labelled images, whose metrics are shown.
            complete: False: not all images were scored.

        Raises:
            InputError: the file cannot be written; an old one stays as it was.
        """
        jinja2 = require("jinja2", "train")
        frame = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
        )
        pictures, page, style = ((_HERE / name).read_text("utf-8") for name in _FILES)
        script = pictures + page
        rows = sorted(self._rows, key=self._interest)
        data = _embedded(self._data(rows))
        blocks = list(self._blocks(rows, MOST_BYTES - len(data)))
        chunks = frame.get_template("results_page.html").generate(
            title=images.display_name(title),
            subject=self._subject(),
            complete=complete,
            script=script,
            style=style,
            script_hash=_hash(script),
            style_hash=_hash(style),
            metrics=_metrics(evaluation),
            kinds=self._kinds(evaluation),
            settings=self._settings(),
            data=data,
            blocks=((number, _embedded(self._block(block))) for number, block in enumerate(blocks)),
            without=len(rows) - sum(map(len, blocks)),
        )
        with files.atomic_write(self._path) as stream:
            for chunk in chunks:
                stream.write(chunk.encode(errors="replace"))

    @property
    def _map_end(self) -> float | None:
        """Value of a map that is shown as the strongest heat, as by `figure.overlay`."""
        value = self._engine.scoring_mode.map_value
        return 2 * value if value is not None and value > 0 else None

    def _interest(self, row: dict[str, Any]) -> tuple[int, float]:
        """What comes first: images without a score, rejected good, missed bad, then by score."""
        score, limit = row["score"], self._engine.threshold
        if score is None:
            return 0, 0.0
        rejected = limit is not None and score > limit.value
        if row["label"] == 0 and rejected:
            return 1, -score
        return (2, score) if row["label"] == 1 and limit is not None and not rejected else (3, -score)

    def _blocks(self, rows: list[dict[str, Any]], room: int) -> Iterator[list[dict[str, Any]]]:
        """The first rows, as many as there is room for pictures of, in bytes."""
        for first in range(0, len(rows), _BLOCK):
            block = rows[first : first + _BLOCK]
            room -= sum(4 * self._thumbnails.size(row["number"]) // 3 + 24 for row in block)
            if room < 0:
                return
            yield block

    def _block(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        return [[base64.b64encode(part).decode() for part in self._thumbnails[row["number"]]] for row in rows]

    def _data(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the script works on."""
        threshold = self._engine.threshold
        shown = ("name", "kind", "label", "score", "verdict", "reason", "size")
        return {
            "rows": [[row[name] for name in shown] for row in rows],
            "columns": shown,
            "block": _BLOCK,
            "threshold": threshold.to_json() if threshold else None,
            "marked": self._map_end is not None,
            "labelled": any(row["label"] is not None for row in rows),
        }

    def _subject(self) -> str:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        images_ = "1 image" if len(self._rows) == 1 else f"{len(self._rows):,} images"
        return f"{images_} · {images.display_name(self._model.name)} · {now}"

    def _kinds(self, evaluation: Evaluation | None) -> list[dict[str, Any]]:
        """A row for each kind: name, images, the median score in units of the threshold and
        metrics.
        """
        limit = self._engine.threshold.value if self._engine.threshold else None
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for row in self._rows if evaluation else ():
            by_kind.setdefault(row["kind"], []).append(row)
        found = {images.display_name(kind): row for kind, row in (evaluation.kinds if evaluation else {}).items()}
        table = []
        for kind, members in sorted(by_kind.items(), key=lambda each: (each[1][0]["label"], each[0])):
            median = float(np.median([row["score"] for row in members]))
            ratio = relative(median, limit)
            metrics = found.get(kind, {})
            table.append(
                {
                    "name": kind,
                    "images": len(members),
                    "median": f"{median:.3g}" if ratio is None else f"{ratio:.2f}",
                    "metrics": [
                        _percent(metrics[name].value) if name in metrics else "" for name in _names(evaluation)
                    ],
                }
            )
        return table

    def _settings(self) -> list[tuple[str, str]]:
        engine = self._engine
        mode = engine.scoring_mode.summary()
        given: dict[str, Any] = {
            "model": images.display_name(self._model),
            "model SHA-256": engine.model_sha256,
            "setting": images.display_name(self._setting),
            "backend": engine.backend,
            "precision": engine.precision,
            "network input": " × ".join(map(str, engine.input_size)),
            **mode,
            "preprocessing": engine.preprocessing.to_json(),
        }
        machine = environment.describe()
        given |= {name: machine[name] for name in _VERSIONS}
        return [(name, _plain(value)) for name, value in given.items()]


def write_evaluation(
    path: Path, engine: Predictor, model: Path, setting: str, evaluation: Evaluation, maps: NDArray[np.float32]
) -> None:
    """Write the page of an evaluation.

    Args:
        path, engine, model, setting: as for `ResultsPage`.
        maps: (N, 256, 256), the anomaly maps of its samples.

    Raises:
        InputError: as from `ResultsPage`.
        BackendError: Jinja is not installed.
    """
    with ResultsPage(path, engine, model, setting, evaluation.images) as page:
        for sample, result, map_ in zip(evaluation.samples, evaluation.results, maps, strict=True):
            page.add(sample.path, dataclasses.replace(result, anomaly_map=map_), sample)
        page.write(evaluation.category, evaluation)


def require_possible(path: Path, count: int) -> None:
    """Find out before the images are scored whether the page can be written.

    Raises:
        InputError: too many images, or the file cannot be written.
        BackendError: Jinja is not installed.
    """
    if count > MOST_IMAGES:
        raise InputError(f"--report: {count} images, a page holds {MOST_IMAGES} at most; score them in parts")
    require("jinja2", "train")
    files.check_writable(path)


def _plain(value: Any) -> str:
    """A value of the settings in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _names(evaluation: Evaluation | None) -> list[str]:
    return list(evaluation.metrics) if evaluation else []


def _metrics(evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """Name, value in percent and, where it has none, the reason."""
    if evaluation is None:
        return []
    return [(name, _percent(each.value), each.reason or "") for name, each in evaluation.metrics.items()]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _embedded(document: Any) -> str:
    """JSON that no text in it can end: it stands in a script element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """By which the page's policy allows this script or style, and no other."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
