"""Archives of images through Ray Data: a pool of workers with an engine each, answers to a folder
as they come.

Every image is answered once: Ray gives the blocks of a worker that dies to another one, and a row
counts only when it has reached the one process that writes, for the first time. An image has the
score bit for bit that it has in a single process where neither batch nor threads change it: by
`cpu`, and by `eager` on a CPU. In a pipeline of one's own:

    images = ray.data.read_binary_files("s3://archive/", include_paths=True)  # `bytes` and `path`
    answers = images.map_batches(Scorer, fn_constructor_args=(Model("screw.safetensors"),),
                                 batch_size=16, num_cpus=1, concurrency=4)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sprfast import errors
from sprfast.config import PUBLISHED, Precision
from sprfast.data import datasets as data
from sprfast.data import images
from sprfast.deploy.ray.device import device_under_ray
from sprfast.deploy.ray.libraries import require
from sprfast.deploy.ray.results import COLUMNS, Results
from sprfast.engine.load import load
from sprfast.engine.predictor import MAX_BATCH
from sprfast.errors import BackendError, InputError, ModelFileError
from sprfast.formats import export as export_file
from sprfast.formats.manifest import file_bytes

BLOCK = 256  # images that a worker takes at a time: what is done again where it dies
PART = 20_000  # answers a file, at most
PART_SECONDS = 30.0  # answers are written at least so often, which is what a stop can lose
RETRIES = 5  # of a block whose worker died; what kills every worker ends the run
RESTARTS = 20  # of a worker
CONNECT = 10.0  # seconds that a cluster has for taking a connection
OBJECT_STORE = 512 * 2**20  # bytes that Ray started here may share among its processes: paths and answers, no images

_OURS = re.compile(r"^sprfast\.errors\.(\w+): (.+)$", re.MULTILINE)
_log = logging.getLogger("sprfast.scale")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Workers, and what each may use.

    Raises:
        InputError: a number is not allowed.
    """

    workers: int = 1  # at most
    least: int | None = None  # with which Ray begins and to which it goes back where there is little to do; None: all
    cpus: int = 1  # of each, which are its threads
    gpus: float = 0.0  # of each; below 1, several share one

    def __post_init__(self) -> None:
        for name, value, most in (
            ("workers", self.workers, 100_000),
            ("least", self.least, self.workers),
            ("cpus", self.cpus, 1024),
        ):
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise InputError(f"{name}: {value!r} is not allowed, expected 1 to {most}")
        if not 0 <= self.gpus <= 64:
            raise InputError(f"gpus: {self.gpus!r} is not allowed, expected 0 to 64")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model or export, as every worker opens it; its arguments travel to the workers."""

    path: str  # which every worker can read
    backend: str = "auto"
    device: str | None = None
    precision: Precision = "float32"
    setting: str = PUBLISHED


class Scorer:
    """What a worker does with a batch of images; for `Dataset.map_batches`, which makes one of it
    in each of its actors.

    Args:
        model: what to open.
        threads: that compute on a CPU.
        sha256: of the model's file; None: any.

    Raises:
        ModelFileError: the file is another one, or cannot be loaded.
        InputError, BackendError: see `load`.
    """

    def __init__(self, model: Model, threads: int = 1, sha256: str | None = None) -> None:
        if sha256 not in (None, _sha256(model.path)):
            raise ModelFileError(
                f"{model.path}: this worker has another file there than the one that asks for the answers"
            )
        self._predictor = load(model.path, model.backend, model.device, model.precision, model.setting, threads)
        self._predictor.self_test()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answers of a batch.

        Args:
            batch: `path`, the name of each image in its answer; in `bytes` the content of its file,
                or in `file` the path of its file as bytes, where that is another one. Further
                columns come back as they are.

        Returns:
            a list for each of `results.COLUMNS`; an image that cannot be read or scored has the
            verdict ERROR and a reason.
        """
        if "bytes" in batch:
            sources: list[Any] = [io.BytesIO(content) for content in batch["bytes"]]
        else:
            sources = [Path(os.fsdecode(file)) for file in batch.get("file", batch["path"])]
        results = self._predictor.predict(sources)
        rows = [{"path": str(path), **result.to_json()} for path, result in zip(batch["path"], results, strict=True)]
        further = {name: column for name, column in batch.items() if name not in ("path", "bytes", "file")}
        return {**further, **{name: [row.get(name) for row in rows] for name in COLUMNS}}


def score(
    sources: Sequence[Path],
    folder: Path,
    model: Model,
    pool: Pool = Pool(),
    *,
    address: str = "local",
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score the images of `sources` that have no answer in `folder` yet, and write the answers
    there.

    Args:
        sources: images, folders of images, or Parquet files or folders, whose names end in
            .parquet, with a column `path`. Answers name an image by its absolute path.
        folder: see `results.Results`.
        model: what scores.
        pool: workers.
        address: of a Ray cluster; "local" starts one for this call on this machine.
        on_images: called with the number of answers and their total, first with those that are
            there already.

    Returns:
        `images`, `already` (answered before), `counts` by verdict over the folder, and
        `interrupted`: whether Ctrl-C ended it, with the answers so far kept.

    Raises:
        ModelFileError: the model's file cannot be used.
        InputError: a source or the folder cannot be used, or this machine has too little for one
            worker.
        BackendError: Ray is not installed, there is no cluster at `address`, a worker cannot run
            the model, or dies again and again.
    """
    require("ray.data")
    compute = require("pyarrow.compute")
    settled = _settled(model, pool)
    computed_by = {"model_file_sha256": _sha256(settled.path), **dataclasses.asdict(settled)}
    del computed_by["path"]
    with Results(folder, computed_by) as results:
        listed = _listed(sources)
        waiting = listed.filter(compute.invert(compute.is_in(listed.column("path"), value_set=results.answered())))
        already = listed.num_rows - waiting.num_rows
        interrupted = False
        on_images(already, listed.num_rows)
        try:
            if waiting.num_rows:
                with _cluster(address, pool) as ray:
                    scorer = {"model": settled, "threads": pool.cpus, "sha256": computed_by["model_file_sha256"]}
                    _run(ray, waiting, results, scorer, pool, lambda done: on_images(already + done, listed.num_rows))
        except KeyboardInterrupt:
            interrupted = True
        return {"images": listed.num_rows, "already": already, "counts": results.counts(), "interrupted": interrupted}


def _settled(model: Model, pool: Pool) -> Model:
    """The model with what workers would otherwise choose each for itself."""
    device = device_under_ray(model.device, pool.gpus)
    backend = model.backend
    if backend == "auto" and export_file.kind(model.path) == "model":  # an export says itself what auto is
        from sprfast.backends import registry as backends

        try:
            backend = backends.choose(backend, device, model.precision)
        except BackendError as error:
            raise BackendError(f"backend auto cannot be chosen on this machine, name one: {error}") from error
    return dataclasses.replace(model, path=os.path.abspath(model.path), device=device, backend=backend)


def _run(
    ray: Any, waiting: Any, results: Results, scorer: dict[str, Any], pool: Pool, on_done: Callable[[int], None]
) -> None:
    """Score all that wait; whatever ends it, the answers so far are written."""
    arrow = require("pyarrow")
    rows = waiting.append_column("row", arrow.array(np.arange(waiting.num_rows)))
    answers = ray.data.from_arrow([rows.slice(first, BLOCK) for first in range(0, rows.num_rows, BLOCK)]).map_batches(
        Scorer,
        fn_constructor_kwargs=scorer,
        batch_size=MAX_BATCH,
        compute=ray.data.ActorPoolStrategy(min_size=pool.least or pool.workers, max_size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        max_restarts=RESTARTS,
        max_task_retries=RETRIES,
    )
    answered = np.zeros(waiting.num_rows, bool)
    kept, last = [], time.monotonic()
    try:
        for block in _answers(answers):
            row = block.column("row").to_numpy()
            kept.append(block.filter(arrow.array(~answered[row])).select(COLUMNS).cast(results.schema))
            answered[row] = True
            on_done(int(answered.sum()))
            if sum(each.num_rows for each in kept) >= PART or time.monotonic() - last >= PART_SECONDS:
                results.append(kept)
                kept, last = [], time.monotonic()
    finally:
        results.append(kept)
    if not answered.all():
        raise BackendError(
            f"ray: {np.count_nonzero(~answered)} of {answered.size} images have no answer; run it again for them"
        )


def _answers(dataset: Any) -> Iterable[Any]:
    """Tables of answers as they come; an error of a worker as what it was there."""
    exceptions = require("ray.exceptions")
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except Exception as error:
        ours = _OURS.findall(str(error))  # of an error in a constructor Ray keeps the text only
        if ours:
            name, message = ours[-1]
            raise getattr(errors, name)(message) from error
        if isinstance(error, exceptions.RayActorError):
            raise BackendError(
                f"ray: a worker died, and again {RETRIES} times with the same images ({_line(error, 0)})"
            ) from error
        raise BackendError(f"ray: {_line(error, -1)}") from error


def _line(error: Exception, index: int) -> str:
    """One of the many lines that Ray's errors have."""
    return (str(error).strip() or type(error).__name__).splitlines()[index][:500]


def _listed(sources: Sequence[Path]) -> Any:
    """A table of `path` and `file`, each file once, in the order given."""
    arrow = require("pyarrow")
    files: dict[str, bytes] = {}  # by printable name
    for source in sources:
        for path in _in_parquet(source) if source.suffix == ".parquet" else data.image_files([source]):
            absolute = os.path.abspath(path)
            name, file = images.display_name(absolute), os.fsencode(absolute)
            if files.setdefault(name, file) != file:
                raise InputError(f"{name}: two files have this printable name; rename one")
    return arrow.table(
        {"path": arrow.array(files, arrow.string()), "file": arrow.array(files.values(), arrow.binary())}
    )


def _in_parquet(source: Path) -> list[str]:
    parquet = require("pyarrow.parquet")
    try:
        column = parquet.read_table(source, columns=["path"], partitioning=None).column("path").to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source}: cannot be read as a Parquet file with a column `path` ({error})") from error
    if not all(isinstance(each, str) for each in column):
        raise InputError(f"{source}: the column `path` must hold text, without nulls")
    return column  # type: ignore[no-any-return]


def _sha256(path: str) -> str:
    return hashlib.sha256(file_bytes(path)).hexdigest()


def _require_listener(address: str) -> None:
    """Raise if nothing takes connections at HOST:PORT, for which Ray would wait ten minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # local, auto, or what only Ray can tell
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BackendError(f"ray: no cluster at {address} ({error})") from error


@contextlib.contextmanager
def _one_try() -> Iterator[None]:
    """Let Ray try an address once, 40 seconds instead of ten minutes: it may be no cluster."""
    tries = "RAY_gcs_server_port_wait_time_s"
    if tries in os.environ:
        yield
        return
    os.environ[tries] = "1"
    try:
        yield
    finally:
        del os.environ[tries]  # which would shorten the start of a cluster of one's own too


@contextlib.contextmanager
def _cluster(address: str, pool: Pool) -> Iterator[Any]:
    """Ray, connected to a cluster; its own must have room for a worker, another may grow."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # without which Ray prints a warning; workers get their device by name
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = require("ray")
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": pool.workers * pool.cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    if ray.is_initialized():
        raise InputError(
            "ray: this program is connected to a cluster already, and there can be one connection only; end it first"
        )
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _require_listener(address)
    try:
        try:
            with contextlib.nullcontext() if own else _one_try():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # Ray raises bare ones too
            raise BackendError(f"ray: no cluster at {address} ({_line(error, 0)})") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        room = ray.cluster_resources()
        for name, wanted in (("CPU", pool.cpus), ("GPU", pool.gpus)):
            if room.get(name, 0.0) < wanted:
                message = f"ray: a worker wants {wanted:g} {name}s, the cluster has {room.get(name, 0.0):g}"
                if own:
                    raise InputError(message)
                _log.warning("%s; waiting for it to grow", message)
        yield ray
    finally:
        ray.shutdown()
