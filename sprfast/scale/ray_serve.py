"""Verdicts over HTTP by Ray Serve: `serve run sprfast.scale.ray_serve:app model=screw.safetensors max_replicas=4`.

POST the bytes of an image file; the answer is JSON:

    200  {"pred_score": 0.41, "verdict": "PASS", "threshold": 0.5, "milliseconds": 3.1, "model": SHA-256 of the weights}
    422  the same with the verdict ERROR and a reason: the image cannot be read or scored
    503  as many requests wait as may; nothing was scored
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sprfast.errors import InputError
from sprfast.prediction import MAX_BATCH, Result
from sprfast.scale import libraries, predictors
from sprfast.setting import PUBLISHED
from sprfast.threshold import Verdict


@dataclasses.dataclass(frozen=True)
class Options:
    """How the application runs; from `serve run` as text.

    Raises:
        InputError: a value is not allowed.
    """

    model: str  # model file or export, readable by every replica
    backend: str = "auto"
    device: str | None = None
    precision: str = "float32"
    setting: str = PUBLISHED
    max_batch: int = MAX_BATCH  # images that are scored together
    batch_wait: float = 0.0  # seconds that an image waits for others; what waits anyway goes together
    max_queued: int = 64  # requests that may wait for a replica at each proxy, beyond those a replica has; more are refused with 503
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0  # of a replica, which are its threads
    gpus: float = 0.0  # of a replica; below 1, several share one
    health_period: float = 10.0  # seconds between self-tests; a replica that fails one is replaced

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queued", "min_replicas", "max_replicas"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InputError(f"{name}: {getattr(self, name)!r} is not allowed, expected 1 to 100000")
        for name, least in (("batch_wait", 0.0), ("cpus", 0.01), ("gpus", 0.0), ("health_period", 0.1)):
            if not least <= getattr(self, name) <= 3600:
                raise InputError(f"{name}: {getattr(self, name)!r} is not allowed, expected {least:g} to 3600")
        if self.min_replicas > self.max_replicas:
            raise InputError(f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """From names and values, the values as text or as what they are.

        Raises:
            InputError: a name is not known, `model` is missing, or a value is not allowed.
        """
        kinds: dict[str, type] = {each.name: type(each.default) for each in dataclasses.fields(cls)}
        unknown = sorted(set(given) - set(kinds))
        if unknown:
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
        self._predictor = predictors.opened(options.model, options.backend, options.device, options.precision, options.setting)
        self._predictor.self_test()
        self._scoring = asyncio.Lock()  # a self-test does not run beside a batch

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request."""
        responses = libraries.require("starlette.responses", "ray")
        if request.method != "POST":
            return responses.JSONResponse({"detail": "POST the bytes of an image file"}, 405)
        body = await request.body()
        result: Result = await self.score(body)  # type: ignore[assignment, arg-type]  # batched, see `app`: one in, one out
        status = 422 if result.verdict is Verdict.ERROR else 200
        return responses.JSONResponse({**result.to_json(), "model": self._predictor.model_sha256}, status)

    async def score(self, bodies: Sequence[bytes]) -> list[Result]:
        """Results of image files, in their order."""
        async with self._scoring:
            return await asyncio.to_thread(self._predictor.predict, [io.BytesIO(body) for body in bodies])

    async def check_health(self) -> None:
        """Raise where the model computes wrong maps or the backend fails."""
        async with self._scoring:
            await asyncio.to_thread(self._predictor.self_test)


def app(given: dict[str, Any]) -> Any:
    """The application, for `serve run` and `serve.run`.

    Args:
        given: fields of `Options` by name.

    Raises:
        InputError: one of them is not allowed.
        BackendError: Ray Serve is not installed.
    """
    options = Options.parse(given)
    options = dataclasses.replace(options, model=os.path.abspath(options.model))
    serve = libraries.require("ray.serve", "ray")
    batched = serve.batch(max_batch_size=options.max_batch, batch_wait_timeout_s=options.batch_wait)(Inspector.score)
    replica = type("Inspector", (Inspector,), {"score": batched, "__module__": __name__, "__doc__": Inspector.__doc__})
    deployment = serve.deployment(
        replica,
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
