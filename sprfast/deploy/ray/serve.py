"""Verdicts over HTTP by Ray Serve.

`serve run sprfast.deploy.ray.serve:app model=screw.safetensors max_replicas=4`

POST the bytes of an image file; the answer is JSON, with the SHA-256 of the weights as `model`:

    200  {"pred_score": 0.41, "verdict": "PASS", "threshold": 0.5, "milliseconds": 3.1, "model": ..}
    413  the same with the verdict ERROR and a reason: more bytes than `max_bytes`
    422  likewise: the image cannot be read or scored
    500  likewise: the backend failed
    503  Ray's own answer: as many requests wait as may; nothing was scored

GET /healthz: which model a replica serves, by what, and how many images in how many batches it has
scored. A replica tests itself every `health_period` seconds; one that does not compute the model's
maps any more is replaced.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sprfast.config import PUBLISHED, Precision
from sprfast.deploy.ray.device import device_under_ray
from sprfast.deploy.ray.libraries import require
from sprfast.engine.load import load
from sprfast.engine.predictor import MAX_BATCH, Result
from sprfast.errors import InputError, SprfastError
from sprfast.formats import export as export_file
from sprfast.method.threshold import Verdict

DIGITS = 15  # of a length; what has more is longer than anything may be
_LIMITS: dict[str, tuple[float, float]] = {  # least and most of each option that is a number
    "max_batch": (1, 1024),
    "batch_wait": (0.0, 60.0),
    "max_queued": (1, 100_000),
    "max_bytes": (1, 2**31),
    "min_replicas": (1, 100_000),
    "max_replicas": (1, 100_000),
    "cpus": (0.01, 1024),
    "gpus": (0.0, 64),
    "health_period": (0.1, 3600),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How the application runs; from `serve run` as text.

    Raises:
        InputError: a value is not allowed.
    """

    model: str  # model file or export, readable by every replica
    backend: str = "auto"
    device: str | None = None
    precision: Precision = "float32"
    setting: str = PUBLISHED
    max_batch: int = MAX_BATCH  # images that are scored together
    batch_wait: float = 0.005  # seconds that an image waits for others; those that come meanwhile are scored with it
    # requests that may wait at each proxy beyond a replica's 2 max_batch; in a burst up to twice
    max_queued: int = 64
    max_bytes: int = 64 * 2**20  # of an image file
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0  # of a replica, which are its threads
    gpus: float = 0.0  # of a replica; below 1, several share one
    health_period: float = 10.0  # seconds between self-tests; a replica that fails one is replaced

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name}: {getattr(self, name)!r} is not allowed, expected {least:g} to {most:.10g}")
        if self.min_replicas > self.max_replicas:
            raise InputError(f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """From names and values, the values as text or as what they are.

        Raises:
            InputError: a name is not known, `model` is missing, or a value is not allowed.
        """
        kinds: dict[str, type] = {each.name: type(each.default) for each in dataclasses.fields(cls)}
        if unknown := sorted(given.keys() - kinds.keys()):
            raise InputError(f"{unknown[0]}: not known, choose from {', '.join(kinds)}")
        if not given.get("model"):
            raise InputError("model: name a model file or an export, as model=PATH")
        values: dict[str, Any] = {}
        for name, value in given.items():
            try:
                values[name] = kinds[name](value) if kinds[name] in (int, float) else value
            except (TypeError, ValueError) as error:
                raise InputError(f"{name}: {value!r} is not a number") from error
        return cls(**values)


class Inspector:
    """A replica: one engine or runner, which scores what waits in batches.

    Args:
        options: of the application.
    """

    def __init__(self, options: Options) -> None:
        serve = require("ray.serve")
        self._json = require("starlette.responses").JSONResponse
        threads = max(1, int(options.cpus))
        self._predictor = load(
            options.model, options.backend, options.device, options.precision, options.setting, threads
        )
        self._predictor.self_test()
        self._max_bytes = options.max_bytes
        self._images = self._batches = 0
        self._batched = serve.batch(max_batch_size=options.max_batch, batch_wait_timeout_s=options.batch_wait)(
            self._score
        )

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request."""
        if request.method == "GET" and request.url.path.endswith("/healthz"):
            scored = {"images": self._images, "batches": self._batches}
            predictor = self._predictor
            names = {"model": predictor.model_sha256, "backend": predictor.backend, "precision": predictor.precision}
            return self._json({"status": "OK", **names, **scored})
        if request.method != "POST":
            return self._json({"detail": "POST the bytes of an image file, or GET /healthz"}, 405)
        try:
            body = await read_body(request, self._max_bytes)
        except InputError as error:
            return self._answer(self._predictor.error(str(error)), 413)
        try:
            result = await self._batched(body)
        except SprfastError as error:
            return self._answer(self._predictor.error(str(error)), 500)
        return self._answer(result, 422 if result.verdict is Verdict.ERROR else 200)

    async def check_health(self) -> None:
        """Raise where maps are wrong or the backend fails; Ray asks each `health_period`."""
        # beside a batch: it must not wait for one, or Ray takes the replica for dead
        await asyncio.to_thread(self._predictor.self_test)

    async def _score(self, bodies: Sequence[bytes]) -> list[Result]:
        """Results of image files, in their order."""
        results = await asyncio.to_thread(self._predictor.predict, [io.BytesIO(body) for body in bodies])
        self._images += len(results)
        self._batches += 1
        return results

    def _answer(self, result: Result, status: int) -> Any:
        return self._json({**result.to_json(), "model": self._predictor.model_sha256}, status)


async def read_body(request: Any, most: int) -> bytes:
    """The body of a Starlette request, of which no more is read than it may have.

    Raises:
        InputError: it is longer than `most` bytes, or says so before it is read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > DIGITS or int(declared) > most):
        raise InputError(f"{declared[:DIGITS]} bytes are more than max_bytes, {most}")
    body = bytearray()
    async for part in request.stream():
        if len(body) + len(part) > most:
            raise InputError(f"the body is more than max_bytes, {most}")
        body += part
    return bytes(body)


def app(given: dict[str, Any]) -> Any:
    """The application, for `serve run` and `serve.run`.

    Args:
        given: fields of `Options` by name.

    Raises:
        InputError: one of them is not allowed.
        ModelFileError: the model's file cannot be used.
        BackendError: Ray Serve is not installed.
    """
    options = Options.parse(given)
    serve = require("ray.serve")
    export_file.kind(options.model)
    device = device_under_ray(options.device, options.gpus)
    options = dataclasses.replace(options, model=os.path.abspath(options.model), device=device)
    deployment = serve.deployment(
        Inspector,
        name="sprfast",
        max_ongoing_requests=2 * options.max_batch,  # a batch that is scored and the one that gathers
        max_queued_requests=options.max_queued,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.max_batch,
        },
        health_check_period_s=options.health_period,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    return deployment.bind(options)
