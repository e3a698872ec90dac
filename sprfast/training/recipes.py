"""Recipes of training by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprfast.config import TrainingConfig

# What each changes of the published recipe. `fast`: the network sees the small
# times at which it scores, in many small steps at a larger learning rate.
# `repair`: beside the noise, it takes painted shapes out of most images, however bright they are.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "fast": {
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warm_up": 20,
        "decay": "cosine",
        "t_sampling": "log_uniform",
        "t_min": 1e-4,
        "t_max": 0.1,
    },
    "repair": {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warm_up": 20,
        "decay": "cosine",
        "t_sampling": "log_uniform",
        "t_min": 0.003,
        "t_max": 0.1,
        "brightness": 0.2,
        "corrupted": 0.9,
    },
}

# The shortest training of each that is measured: bench/results/curve-*.json, and for `repair`
# docs/results/accuracy.md.
FEWEST_STEPS = {"published": 131, "fast": 236, "repair": 300}

_FREE = ("epochs", "steps", "time_limit", "hold_back", "seed")  # of a training's configuration, what no recipe says


def trained_by(provenance: Mapping[str, Any]) -> str | None:
    """The recipe that a model's provenance has every value of; None: there is none."""
    # a model of an earlier version does not name what there was one of
    training = {"precision": "float32", "brightness": 0.0, "corrupted": 0.0} | provenance.get("training", {})
    for name, changes in RECIPES.items():
        recipe = TrainingConfig(**changes).to_json()
        if all(training.get(key) == value for key, value in recipe.items() if key not in _FREE):
            return name
    return None


def recipe_of(config: TrainingConfig) -> str:
    """The recipe that sees what a training sees."""
    if config.corrupted:
        return "repair"
    return "fast" if config.t_sampling == RECIPES["fast"]["t_sampling"] else "published"
