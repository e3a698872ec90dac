"""Denoising score matching on images of good parts, in eager PyTorch, resumable bit for bit.

Every random number of step s is a function of (seed, s), so a checkpoint holds no generator state:
weights, their average, optimizer moments, step and elapsed time are all there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprfast._version import __version__
from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.data import corruption, datasets
from sprfast.errors import CheckFailedError, InputError, SprfastWarning
from sprfast.formats import model as model_file
from sprfast.formats import trained_on as trained_on_file
from sprfast.method import sde
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet
from sprfast.system import devices, files
from sprfast.system.process_group import ProcessGroup
from sprfast.system.signals import Stop, stop_signals
from sprfast.training.checkpoint import Recipe, TrainingState, checkpoint_path
from sprfast.training.loader import ImageDataset, batch_order, batches

_PUBLISHED = (NetworkConfig(), Preprocessing(), Schedule(), TrainingConfig())
TOLERANCE = 0.1  # standard deviation that the loss grants to what was painted, of pixels in [-1, 1]
GPU_CHECK_EVERY = 20  # steps between looks at the loss on a GPU; each look waits for the device


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands after a step."""

    step: int  # optimizer steps done, over all runs of this training
    fraction: float  # of the limit, 0 to 1
    loss: float  # of the last step looked at, mean over the global batch
    images_per_second: float  # of this run
    seconds_left: float  # at the pace of this run


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """How a run of `train` ended."""

    model: model_file.Model | None  # the same on every process; None when a signal stopped the run
    stopped_by: signal.Signals | None
    step: int
    losses: tuple[tuple[int, float], ...]  # (step, loss) of this run's steps that were looked at


def train(
    paths: list[Path],
    output: Path,
    *,
    network: NetworkConfig = _PUBLISHED[0],
    preprocessing: Preprocessing = _PUBLISHED[1],
    schedule: Schedule = _PUBLISHED[2],
    training: TrainingConfig = _PUBLISHED[3],
    device: str | torch.device | None = None,
    workers: int = 1,
    checkpoint_every: float = 300.0,
    resume: bool = False,
    force: bool = False,
    process_timeout: float = 300.0,
    origin: Mapping[str, Any] | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> TrainingOutcome:
    """Train a score network and write it to `output`, a model file without a threshold.

    While it runs, `checkpoint_path(output)` holds the last good state; it is removed at the end.
    Under torchrun the batch is shared among the processes and the first one writes.

    Args:
        paths: images of good parts.
        device: where to train, see `devices.resolve`; under torchrun, "cuda" is this process's own
            device.
        workers: processes that decode images; 0 decodes in the training process.
        checkpoint_every: seconds between checkpoints.
        resume: go on from the checkpoint.
        force: replace the file that is at `output`.
        process_timeout: seconds that torchrun's processes wait for each other at any point.
        origin: what the images are of and where they come from, for the model's provenance; JSON.
        on_step: called after each step whose loss is looked at (each one on a CPU), by every
            process.

    Raises:
        InputError: images that cannot be used, a time limit that is over before the first step, a
            checkpoint of another recipe, or one in the way of a fresh start; `output` cannot be
            written, is there already, or another training is writing it.
        CheckFailedError: the loss or the weights became NaN or infinite, or another process is
            gone; the checkpoint stays.
    """
    started = time.monotonic()
    device = devices.resolve(device)
    group = ProcessGroup(process_timeout)
    share = group.share(training.batch_size)  # refused before anything is written
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives of this process run on the current device
    files.check_writable(output)
    files.check_writable(checkpoint_path(output))
    with files.exclusive(output) if group.rank == 0 else contextlib.nullcontext():
        _require_fresh(output, resume, force)
        used, held_back = datasets.split(paths, training.hold_back, training.seed)
        files.refuse_source(output, paths)
        dataset = ImageDataset(paths, preprocessing, held_back)
        recipe = Recipe(network, preprocessing, schedule, training, datasets.fingerprint(paths))
        if resume and not force:
            _require_own(output, recipe)
        known = {datasets.digest(path) for path in used}
        provenance = {
            **(origin or {}),
            "held_back": [path.name for path in held_back],
            trained_on_file.FIELD: trained_on_file.packed(known),
            # without copies of what is trained on
            trained_on_file.HELD_BACK: trained_on_file.packed({datasets.digest(path) for path in held_back} - known),
        }
        state = TrainingState.resumed(output, recipe, device) if resume else TrainingState(recipe, device)
        if group.rank == 0:
            _warn_of_slow_bfloat16(training, device)
        run = _Run(recipe, state, group, device, output, dataset, started)
        order = batch_order(len(dataset), training.batch_size, training.seed, start=state.step, share=share)
        with stop_signals() as stop:
            if not resume:
                run.save()
            with batches(dataset, order, workers=workers, pin_memory=device.type == "cuda") as stream:
                stopped_by = run.loop(stream, stop, checkpoint_every, on_step)
            run.require_finite()
            if not state.step and not stopped_by:
                checkpoint_path(output).unlink(missing_ok=True)
                limit = f"time_limit: {training.time_limit:g} s were over before the first step"
                raise InputError(f"{limit}; reading the images counts, give more")
            model = None
            if stopped_by:
                run.save()
            else:
                model = run.model(provenance)
                if group.rank == 0:
                    model_file.save(output, model)
                    checkpoint_path(output).unlink(missing_ok=True)
            return TrainingOutcome(model, stopped_by, state.step, tuple(run.losses))


def _require_fresh(output: Path, resume: bool, force: bool) -> None:
    """Raise InputError where a start would lose what an earlier training has left."""
    if resume:
        return
    if checkpoint_path(output).exists():
        raise InputError(
            f"{checkpoint_path(output)}: holds an unfinished training; go on with --resume, or delete it to start again"
        )
    if not force:
        files.require_free(output)


def _require_own(output: Path, recipe: Recipe) -> None:
    """Raise InputError where a resumed training would replace anything but its own result, which a
    process that is killed at its very end leaves beside the checkpoint.
    """
    if not output.exists():
        return
    held = model_file.load(output)
    same = held.provenance.get("data_fingerprint") == recipe.data_fingerprint
    same = same and held.provenance.get("training") == recipe.training.to_json()
    if not same or held.scoring_mode.threshold or held.scoring_modes:
        files.require_free(output)


def _warn_of_slow_bfloat16(config: TrainingConfig, device: torch.device) -> None:
    if config.precision == "bfloat16" and device.type == "cpu" and not devices.cpu_multiplies_bfloat16():
        warnings.warn(
            "precision bfloat16: this CPU has no instructions for it, such as AVX512_BF16: a step takes longer than in "
            "float32",
            SprfastWarning,
            stacklevel=3,
        )


def loss(
    network: torch.nn.Module, x: Tensor, t: Tensor, z: Tensor, corrupted: corruption.Corrupted | None = None
) -> Tensor:
    """Denoising score matching: batch mean of the sum over pixels and channels of (s(x + std·z,
    t)·std + z)².

    With x_c the corrupted image, the residual r = std·(s(x_c + std·z, t)·std + z) of a score is to
    be x - x_c, what was painted taken out again. The sum is then of (r - (x - x_c))² / std², and of
    (r - (x - x_c))² / (std² + TOLERANCE²) where something was painted: equal to the above where
    nothing was.

    Args:
        network: computes std(t)·s(x, t), see `ScoreUNet.scaled_score`.
        x: (B, 3, H, W) images in [-1, 1].
        t: (B,) times in (0, 1].
        z: (B, 3, H, W) standard-normal draws.
        corrupted: the images with shapes painted into them.

    Returns:
        a float32 scalar.
    """
    std = sde.std(t)[:, None, None, None]
    if corrupted is None:
        squares = (network(x + std * z, t).float() + z).square()
    else:
        error = network(corrupted.x + std * z, t).float() + z - (x - corrupted.x) / std
        squares = error.square() * (std**2 / (std**2 + corrupted.painted * TOLERANCE**2))
    return squares.flatten(1).sum(dim=1).mean()  # type: ignore[no-any-return]


def times(config: TrainingConfig, u: Tensor) -> Tensor:
    """Times of perturbations from uniform draws u in [0, 1), by `config.t_sampling`; shape and
    dtype of u.
    """
    if config.t_sampling == "log_uniform":
        return config.t_min * (config.t_max / config.t_min) ** u
    return u * (config.t_max - config.t_min) + config.t_min


def jitter_brightness(x: Tensor, config: TrainingConfig, u: Tensor) -> Tensor:
    """(B, 3, H, W) images in [-1, 1] brighter or darker by factors from (B,) uniform draws u in [0,
    1): black stays black, and what is beyond white is white.
    """
    factor = torch.exp(config.brightness * (2.0 * u - 1.0))[:, None, None, None]
    return ((x + 1.0) * factor - 1.0).clamp(-1.0, 1.0)


def learning_rate(config: TrainingConfig, step: int, fraction: float) -> float:
    """Learning rate of a step, counted from 0, before which `fraction` of the limit was done."""
    warm = min(1.0, (step + 1) / config.warm_up) if config.warm_up else 1.0
    if config.decay == "cosine":
        return config.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
    return config.learning_rate * warm * config.decay_factor ** int(min(fraction, 0.999) * 3)


class _ScaledScore(torch.nn.Module):
    """The network as the loss wants it, as a module: gradients are only shared through a module's
    forward.
    """

    def __init__(self, network: ScoreUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network.scaled_score(x, t)


class _Run:
    """One run of the training loop over a state."""

    def __init__(
        self,
        recipe: Recipe,
        state: TrainingState,
        group: ProcessGroup,
        device: torch.device,
        output: Path,
        dataset: ImageDataset,
        started: float,
    ) -> None:
        self.recipe, self.state, self.group, self.device = recipe, state, group, device
        self.output, self.dataset = output, dataset
        self.losses: list[tuple[int, float]] = []
        config = recipe.training
        self._first_step = state.step
        self._started = started - state.seconds
        self._loop_started = time.monotonic()
        self._last_step = config.steps or -(-config.epochs * len(dataset) // config.batch_size)
        self._network = group.wrap(_ScaledScore(state.network), device)
        self._donors = dataset.spread(corruption.DONORS).to(device) if config.corrupted else None

    @property
    def elapsed(self) -> float:
        """Seconds trained, over all runs."""
        return time.monotonic() - self._started

    def loop(
        self, stream: Iterator[Tensor], stop: Stop, checkpoint_every: float, on_step: Callable[[Progress], None]
    ) -> signal.Signals | None:
        saved = time.monotonic()
        while True:
            fraction, stopped_by = self.group.agree(self._fraction(), stop.signal)
            if stopped_by or fraction >= 1.0:
                return stopped_by
            value = self._step(next(stream), fraction)
            # the processes look at the same steps, since each look is a collective; their clocks
            # differ
            if self.device.type == "cpu" or self.state.step % GPU_CHECK_EVERY == 0:
                on_step(self._progress(value))
                if time.monotonic() - saved >= checkpoint_every:
                    self.require_finite()
                    self.save()
                    saved = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint, from the first process."""
        if self.group.rank == 0:
            self.state.save(self.output, self.recipe, self.elapsed)

    def require_finite(self) -> None:
        """Raise if the state has diverged, which the loss of a step cannot yet show of its own
        update.
        """
        if not self.state.finite:
            raise self._diverged("the weights or their gradients")

    def model(self, provenance: Mapping[str, Any]) -> model_file.Model:
        """The trained model: averaged weights and where they come from."""
        recipe = self.recipe
        provenance = {
            **provenance,
            "data_fingerprint": recipe.data_fingerprint,
            "images": len(self.dataset),
            "steps": self.state.step,
            "seconds": round(self.elapsed, 1),
            "peak_memory_mib": devices.peak_memory_mib(self.device),
            "loss": self.losses[-1][1] if self.losses else None,
            "training": recipe.training.to_json(),
            "versions": {"sprfast": __version__, "torch": torch.__version__},
        }
        weights = {
            name: value.to("cpu", memory_format=torch.contiguous_format) for name, value in self.state.average.items()
        }
        # of the frozen noise too, so that trainings with several seeds show what both are worth
        seed = recipe.training.seed
        return model_file.Model(
            recipe.network, ScoringMode(recipe.schedule), recipe.preprocessing, weights, seed, provenance=provenance
        )

    def _fraction(self) -> float:
        limit = self.recipe.training.time_limit
        return self.elapsed / limit if limit else self.state.step / self._last_step

    def _step(self, images: Tensor, fraction: float) -> Tensor:
        config, state = self.recipe.training, self.state
        x = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        x, t, z, corrupted = self._draws(x)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = learning_rate(config, state.step, fraction)
        state.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            value = loss(self._network, x, t, z, corrupted)
        with self.group.exchange(f"the gradients of step {state.step + 1}"):
            value.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.update_average(config.ema_decay)
        state.step += 1
        return value.detach()

    def _draws(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, corruption.Corrupted | None]:
        """x as bright as it is trained on, t, z and the corrupted images of this process's share x:
        every process draws for the whole batch and takes its slice.
        """
        config, mine = self.recipe.training, self.group.share(self.recipe.training.batch_size)
        digest = hashlib.sha256(f"{config.seed} {self.state.step}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        t = times(config, torch.rand(config.batch_size, generator=generator, device=self.device))
        z = torch.randn((config.batch_size, 3, *self.dataset.height_width), generator=generator, device=self.device)
        if config.brightness:
            u = torch.rand(config.batch_size, generator=generator, device=self.device)
            x = jitter_brightness(x, config, u[mine])
        painted = None
        if self._donors is not None:
            painted = corruption.corrupt(x, self._donors, config.corrupted, config.batch_size, mine, generator)
        return x, t[mine], z[mine].contiguous(memory_format=torch.channels_last), painted

    def _progress(self, value: Tensor) -> Progress:
        """Look at the loss of the last step, which waits for the device."""
        state, config = self.state, self.recipe.training
        number = self.group.mean(value)
        if not math.isfinite(number):
            raise self._diverged("the loss")
        self.losses.append((state.step, number))
        pace = (state.step - self._first_step) / (time.monotonic() - self._loop_started)
        limit = config.time_limit
        left = limit - self.elapsed if limit else (self._last_step - state.step) / pace
        return Progress(state.step, min(1.0, self._fraction()), number, pace * config.batch_size, max(0.0, left))

    def _diverged(self, what: str) -> CheckFailedError:
        return CheckFailedError(
            f"{what} became NaN or infinite at step {self.state.step}; {checkpoint_path(self.output)} holds the last "
            "good state: start again with a lower --learning-rate"
        )
