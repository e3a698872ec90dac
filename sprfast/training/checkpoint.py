"""The state of a training and the file that holds it, from which a run goes on bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig, _Config
from sprfast.errors import InputError
from sprfast.formats import tensors as archive
from sprfast.method.unet import ScoreUNet


@dataclasses.dataclass(frozen=True)
class Recipe(_Config):
    """Everything that decides the weights; a checkpoint is resumed only under the same recipe."""

    network: NetworkConfig
    preprocessing: Preprocessing
    schedule: Schedule
    training: TrainingConfig
    data_fingerprint: str


def checkpoint_path(output: Path) -> Path:
    """Where the training of `output` keeps its last good state."""
    return output.with_name(output.name + ".checkpoint")


class TrainingState:
    """What a checkpoint holds: network, its moving average, optimizer, step, seconds trained."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            network = ScoreUNet(recipe.network)
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.trained = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=recipe.training.learning_rate,
            weight_decay=recipe.training.weight_decay,
            fused=True,
        )
        for value in self.trained.values():  # as the optimizer would make it in its first step
            self.optimizer.state[value] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(value),
                "exp_avg_sq": torch.zeros_like(value),
            }
        self.step = 0
        self.seconds = 0.0

    @classmethod
    def resumed(cls, output: Path, recipe: Recipe, device: torch.device) -> TrainingState:
        """The state in the checkpoint of `output`.

        Raises:
            InputError: there is none, or it was made under another recipe.
            ModelFileError: it is damaged.
        """
        path = checkpoint_path(output)
        if not path.exists():
            raise InputError(f"{path}: there is no checkpoint to resume from; start without --resume")
        arrays, document = archive.read(path, kind="checkpoint")
        # fields that its version did not know yet had their defaults
        _require_same(path, Recipe.from_json(document.get("recipe")), recipe)
        state = cls(recipe, device)
        for name, value in state.tensors().items():
            value.copy_(torch.from_numpy(arrays[name]))
        state.step, state.seconds = int(document["step"]), float(document["seconds"])
        return state

    def tensors(self) -> dict[str, Tensor]:
        """All numbers of the state by name, to be read or written in place."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, value in self.trained.items():
            moments = self.optimizer.state[value].items()
            tensors |= {f"optimizer.{moment}.{name}": held for moment, held in moments}
        return tensors

    @property
    def finite(self) -> bool:
        """Whether every number of the state is finite; on a GPU this waits for the device."""
        return all(bool(torch.isfinite(value).all()) for value in self.tensors().values())

    def save(self, output: Path, recipe: Recipe, seconds: float) -> None:
        """Write the checkpoint of `output`, replacing the one before in one step."""
        document = {"recipe": recipe.to_json(), "step": self.step, "seconds": seconds}
        arrays = {name: value.cpu().numpy() for name, value in self.tensors().items()}
        archive.write(checkpoint_path(output), arrays, document, kind="checkpoint")

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights; it warms up as (1 + step) / (10 + step) up to
        `decay`.
        """
        average = [self.average[name] for name in self.trained]
        update = get_ema_multi_avg_fn(min(decay, (1 + self.step) / (10 + self.step)))  # type: ignore[no-untyped-call]
        update(average, list(self.trained.values()), self.step)


def _require_same(path: Path, held: Any, wanted: Any, name: str = "") -> None:
    """Raise InputError with the first field in which two recipes differ."""
    if dataclasses.is_dataclass(wanted):
        for field in dataclasses.fields(wanted):
            inner = f"{name}.{field.name}" if name else field.name
            _require_same(path, getattr(held, field.name), getattr(wanted, field.name), inner)
    elif held != wanted:
        raise InputError(
            f"{path}: was made with {name} = {held!r}, this run asks for {wanted!r}; resume with the same settings "
            f"and images"
        )
