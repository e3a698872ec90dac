"""Archives of images through Ray Data: a pool of workers with an engine each, answers to a folder as they come.

Every image is answered once: Ray gives the blocks of a worker that dies to another one, and a row counts only when it has
reached the one process that writes. An image has the score bit for bit that it has in a single process where neither batch nor
threads change it: by `cpu`, and by `eager` on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprfast import data, images
from sprfast.errors import BackendError, InputError, SprfastError
from sprfast.manifest import file_bytes
from sprfast.prediction import MAX_BATCH
from sprfast.scale import libraries, predictors
from sprfast.scale.results import COLUMNS, Results
from sprfast.setting import PUBLISHED

BLOCK = 256  # images that a worker takes at a time: what is done again where it dies
PART = 20_000  # answers a file, at most
PART_SECONDS = 30.0  # answers are written at least so often, which is what a stop can lose

OnImages = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Workers, and what each may use.

    Raises:
        InputError: a number is not allowed.
    """

    workers: int = 1
    cpus: int = 1  # of each, which are its threads
    gpus: float = 0.0  # of each; below 1, several share one

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("cpus", self.cpus)):
            if type(value) is not int or not 1 <= value <= 100_000:
                raise InputError(f"{name}: {value!r} is not allowed, expected 1 to 100000")
        if not 0 <= self.gpus <= 64:
            raise InputError(f"gpus: {self.gpus!r} is not allowed, expected 0 to 64")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model or export, as every worker opens it; its arguments travel to the workers.

    `path` must be readable at the same place by every worker.
    """

    path: str
    backend: str = "auto"
    device: str | None = None
    precision: str = "float32"
    setting: str = PUBLISHED


class Scorer:
    """What a worker does with a batch of images; for `Dataset.map_batches`, which builds one an actor.

    Args:
        model: what to open.

    Raises:
        SprfastError: see `predictors.opened`.
    """

    def __init__(self, model: Model) -> None:
        self._predictor = predictors.opened(model.path, model.backend, model.device, model.precision, model.setting)
        self._predictor.self_test()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answers of a batch.

        Args:
            batch: `file`, the path of each image as bytes, and `path`, its name in the answers.

        Returns:
            a list for each of `results.COLUMNS`; an image that cannot be read or scored has the verdict ERROR and a reason.
        """
        results = self._predictor.predict([Path(os.fsdecode(file)) for file in batch["file"]])
        rows = [{"path": str(path), **result.to_json()} for path, result in zip(batch["path"], results, strict=True)]
        return {name: [row.get(name) for row in rows] for name in COLUMNS}


def score(
    sources: Sequence[Path],
    folder: Path,
    model: Model,
    pool: Pool = Pool(),
    *,
    address: str = "local",
    on_images: OnImages = lambda done, total: None,
) -> dict[str, Any]:
    """Score the images of `sources` that have no answer in `folder` yet, and write the answers there.

    Args:
        sources: images, folders of images, or Parquet files with a column `path`.
        folder: see `results.Results`.
        model: what scores.
        pool: workers.
        address: of a Ray cluster; "local" starts one for this call on this machine.
        on_images: called with the number of answers and their total.

    Returns:
        `images`, `already` (answered before), `counts` by verdict over the folder, and `interrupted`: whether Ctrl-C ended it, with
        the answers so far kept.

    Raises:
        InputError: a source or the folder cannot be used, or the cluster has too little for one worker.
        BackendError: Ray is not installed, there is no cluster at `address`, or a worker cannot run the model.
    """
    libraries.require("ray.data", "ray")
    opened = dataclasses.replace(model, path=os.path.abspath(model.path))
    with Results(folder, _computed_by(opened)) as results:
        listed = _listed(sources)
        waiting = _without(listed, results.answered())
        already = listed.num_rows - waiting.num_rows
        interrupted = False
        try:
            if waiting.num_rows:
                with _cluster(address, pool) as ray:
                    _run(ray, waiting, results, opened, pool, lambda done: on_images(already + done, listed.num_rows))
        except KeyboardInterrupt:
            interrupted = True
        return {"images": listed.num_rows, "already": already, "counts": results.counts(), "interrupted": interrupted}


def _run(ray: Any, waiting: Any, results: Results, model: Model, pool: Pool, on_done: Callable[[int], None]) -> None:
    """Score all that wait; whatever ends it, the answers so far are written."""
    blocks = [waiting.slice(first, BLOCK) for first in range(0, waiting.num_rows, BLOCK)]
    answers = ray.data.from_arrow(blocks).map_batches(
        Scorer,
        fn_constructor_args=(model,),
        batch_size=MAX_BATCH,
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
    done, kept, last = 0, [], time.monotonic()
    try:
        for rows in _answers(answers):
            table = rows.select(COLUMNS).cast(results.schema)
            kept.append(table)
            done += table.num_rows
            on_done(done)
            if sum(each.num_rows for each in kept) >= PART or time.monotonic() - last >= PART_SECONDS:
                _write(results, kept)
                kept, last = [], time.monotonic()
    finally:
        _write(results, kept)
    if done != waiting.num_rows:
        raise BackendError(f"ray: {done} answers for {waiting.num_rows} images")


def _answers(dataset: Any) -> Iterable[Any]:
    """Tables of answers as they come; an error of a worker as what it was there."""
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SprfastError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        if cause is not None:
            raise type(cause)(str(cause)) from error
        raise BackendError(f"ray: {str(error).strip().splitlines()[-1][:500]}") from error


def _write(results: Results, tables: list[Any]) -> None:
    if tables:
        results.append(libraries.require("pyarrow", "ray").concat_tables(tables))


def _listed(sources: Sequence[Path]) -> Any:
    """A table of `path` and `file`, each path once, in the order given."""
    arrow = libraries.require("pyarrow", "ray")
    paths: list[str] = []
    for source in sources:
        paths += _in_parquet(source) if source.suffix == ".parquet" else [os.fspath(path) for path in data.image_files([source])]
    files: dict[str, bytes] = {}
    for path in paths:
        name, file = images.display_name(Path(path)), os.fsencode(os.path.abspath(path))
        if files.setdefault(name, file) != file:
            raise InputError(f"{name}: two files have this printable name; rename one")
    return arrow.table({"path": arrow.array(files, arrow.string()), "file": arrow.array(files.values(), arrow.binary())})


def _in_parquet(source: Path) -> list[str]:
    parquet = libraries.require("pyarrow.parquet", "ray")
    try:
        column = parquet.read_table(source, columns=["path"]).column("path").to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source}: cannot be read as a Parquet file with a column `path` ({error})") from error
    if not all(isinstance(each, str) for each in column):
        raise InputError(f"{source}: the column `path` must hold text, without nulls")
    return column  # type: ignore[no-any-return]


def _without(listed: Any, answered: Any) -> Any:
    compute = libraries.require("pyarrow.compute", "ray")
    return listed.filter(compute.invert(compute.is_in(listed.column("path"), value_set=answered)))


def _computed_by(model: Model) -> dict[str, str]:
    """What must be the same for answers to belong together."""
    content = hashlib.sha256(file_bytes(model.path)).hexdigest()
    return {"model_file_sha256": content, **{name: str(getattr(model, name)) for name in ("backend", "device", "precision", "setting")}}


@contextlib.contextmanager
def _cluster(address: str, pool: Pool) -> Iterator[Any]:
    """Ray, connected to a cluster that has room for a worker."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = libraries.require("ray", "ray")
    own: dict[str, Any] = {"num_cpus": pool.workers * pool.cpus, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BackendError(f"ray: no cluster at {address} ({str(error).strip().splitlines()[0][:300]})") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        room = ray.cluster_resources()
        for name, wanted in (("CPU", pool.cpus), ("GPU", pool.gpus)):
            if room.get(name, 0.0) < wanted:
                raise InputError(f"ray: a worker wants {wanted:g} {name}s, the cluster has {room.get(name, 0.0):g}")
        yield ray
    finally:
        ray.shutdown()
