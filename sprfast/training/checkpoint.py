"""The state of a training and the file that holds it, from which a run goes on bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sprfast.config import NetworkConfig, Preprocessing, Schedule, TrainingConfig
from sprfast.errors import InputError
from sprfast.formats import tensors as archive
from sprfast.method.unet import ScoreUNet


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights; a checkpoint is resumed only under the same recipe."""

    network: NetworkConfig
    preprocessing: Preprocessing
    schedule: Schedule
    training: TrainingConfig
    data_fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return dataclasses.asdict(self)


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
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        _require_same_recipe(path, _completed(document.get("recipe")), recipe.to_json())
        state = cls(recipe, device)
        state.network.load_state_dict(_part(tensors, "network."))
        for name, value in _part(tensors, "average.").items():
            state.average[name].copy_(value)
        for name, value in state.trained.items():
            moments = {moment: tensors[f"optimizer.{moment}.{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")}
            state.optimizer.state[value] = {moment: _like(held, value, moment) for moment, held in moments.items()}
        state.step, state.seconds = int(document["step"]), float(document["seconds"])
        return state

    @property
    def finite(self) -> bool:
        """Whether every number of the state is finite; on a GPU this waits for the device."""
        tensors = [*self.network.state_dict().values(), *self.average.values()]
        tensors += [moment for moments in self.optimizer.state.values() for moment in moments.values()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def save(self, output: Path, recipe: Recipe, seconds: float) -> None:
        """Write the checkpoint of `output`, replacing the one before in one step."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, value in self.trained.items():
            held = self.optimizer.state.get(value) or _empty_moments(value)
            tensors |= {f"optimizer.{moment}.{name}": moments for moment, moments in held.items()}
        document = {"recipe": recipe.to_json(), "step": self.step, "seconds": seconds}
        arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        archive.write(checkpoint_path(output), arrays, document, kind="checkpoint")

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights; it warms up as (1 + step) / (10 + step) up to
        `decay`.
        """
        average = [self.average[name] for name in self.trained]
        update = get_ema_multi_avg_fn(min(decay, (1 + self.step) / (10 + self.step)))  # type: ignore[no-untyped-call]
        update(average, list(self.trained.values()), self.step)


def _require_same_recipe(path: Path, held: Any, wanted: dict[str, Any], name: str = "") -> None:
    if isinstance(wanted, dict) and isinstance(held, dict):
        for key, value in wanted.items():
            _require_same_recipe(path, held.get(key), value, f"{name}.{key}" if name else key)
    elif held != _plain(wanted):
        raise InputError(
            f"{path}: was made with {name} = {held!r}, this run asks for {wanted!r}; resume with the same settings "
            f"and images"
        )


def _completed(held: Any) -> Any:
    """A recipe as written, with the fields that its version did not know yet, which had their
    defaults.
    """
    kinds: dict[str, Any] = {
        "network": NetworkConfig,
        "preprocessing": Preprocessing,
        "schedule": Schedule,
        "training": TrainingConfig,
    }
    if not isinstance(held, dict):
        return held
    return _plain(
        {name: kinds[name].from_json(part).to_json() if name in kinds else part for name, part in held.items()}
    )


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _like(held: Tensor, parameter: Tensor, moment: str) -> Tensor:
    """A moment as the optimizer had it: with the parameter's memory format; the step is a
    scalar.
    """
    return held.to(parameter.device) if moment == "step" else torch.empty_like(parameter).copy_(held)


def _empty_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
