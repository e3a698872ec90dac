"""The command `predict`, and what opens a model file or an export for it and for others; without
PyTorch where it is an export.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from sprfast.cli import console
from sprfast.config import Preprocessing
from sprfast.data import datasets as data
from sprfast.data import figure, images
from sprfast.engine.predictor import MAX_BATCH, Predictor, Result
from sprfast.engine.runner import Runner, TensorRtOptions
from sprfast.errors import InputError
from sprfast.formats import export as export_file
from sprfast.method.scoring_mode import PUBLISHED
from sprfast.method.threshold import Verdict
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.formats.model import Model


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs a model: as `Engine` takes it."""

    backend: str = "auto"
    device: str | None = None
    precision: Any = "float32"  # checked by `backends.create`
    setting: str = PUBLISHED  # of those in the model file

    def engine(self, model: Model) -> Predictor:
        """An engine for `model`."""
        from sprfast.engine.engine import Engine

        return Engine(model.using(self.setting), self.backend, self.device, self.precision)

    def runner(self, path: Path) -> Runner:
        """A runner for the export at `path`; a progress bar while TensorRT builds."""
        if self.precision != "float32":
            raise InputError(f"--precision {self.precision}: an export has the precision that it was exported in")
        if self.setting != PUBLISHED:
            raise InputError(f"--setting {self.setting}: an export has the setting that it was exported with")
        with console.counter("building") as on_progress:
            tensorrt = TensorRtOptions(on_progress=lambda what, done, total: on_progress(done, total, what))
            return Runner(export_file.read(path), self.backend, self.device, tensorrt=tensorrt)

    def open(self, path: Path) -> Predictor:
        """An engine for a model file, or a runner for an export."""
        if export_file.kind(path) != "model":
            return self.runner(path)
        from sprfast.formats import model as model_file

        return self.engine(model_file.load(path))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` found, image by image."""

    backend: str  # in use
    rows: list[dict[str, Any]]
    interrupted: bool

    @property
    def counts(self) -> dict[str, int]:
        """Images by verdict."""
        return {verdict.value: sum(row["verdict"] == verdict.value for row in self.rows) for verdict in Verdict}

    def to_json(self) -> dict[str, Any]:
        """The rows, their counts, and what computed them."""
        return {"complete": not self.interrupted, "backend": self.backend, "counts": self.counts, "results": self.rows}

    def table(self) -> Table:
        """One line an image."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items()) + f"; backend {self.backend}"
        table = Table(Column("image", overflow="fold"), "pred_score", "verdict", "reason", caption=counts)
        for row in self.rows:
            score = "-" if row["pred_score"] is None else f"{row['pred_score']:.6g}"
            table.add_row(row["path"], score, row["verdict"], row.get("reason", ""))
        return table


def predict(path: Path, sources: list[Path], output: Path | None, runtime: Runtime) -> Prediction:
    """Score image files; with `output`, write results.jsonl and an overlay for each scored
    image.
    """
    engine = runtime.open(path)
    paths = data.image_files(sources)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    interrupted = False
    with console.counter("predicting") as on_image:
        try:
            for first in range(0, len(paths), MAX_BATCH):
                chunk = paths[first : first + MAX_BATCH]
                for source, result in zip(chunk, engine.predict(chunk), strict=True):
                    row = {"path": images.display_name(source), **result.to_json()}
                    if output and math.isfinite(result.pred_score):
                        row["overlay"] = _write_overlay(output, names, source, result, engine.preprocessing)
                    rows.append(row)
                on_image(len(rows), len(paths))
        except KeyboardInterrupt:
            interrupted = True
    if output:
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(output / "results.jsonl", lines.encode())
    return Prediction(engine.backend, rows, interrupted)


def _write_overlay(output: Path, names: set[str], source: Path, result: Result, preprocessing: Preprocessing) -> str:
    """Write the overlay under the image's own name; where two share one, with its folder's name
    before it, then numbered.
    """
    stem = images.display_name(source.stem)[:60]
    name = stem
    if name.casefold() in names:
        stem = name = f"{images.display_name(source.absolute().parent.name)[:60]}-{stem}"
    while name.casefold() in names:
        name = f"{stem}-{len(names)}"
    names.add(name.casefold())
    assert result.anomaly_map is not None  # as its score is finite
    target = files.confined(output, os.fsdecode(f"{name}.png".encode()))  # UTF-8 whatever the locale
    figure.save_png(
        target, figure.overlay(images.read_rgb(source, preprocessing), result.anomaly_map, result.map_threshold)
    )
    return f"{name}.png"
