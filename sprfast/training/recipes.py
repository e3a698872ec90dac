"""Recipes of training by name."""

from __future__ import annotations

from typing import Any

from sprfast.config import TrainingConfig

# What each changes of the published recipe. `fast`: the network sees the small
# times at which it scores, in many small steps at a larger learning rate.
# `repair`: beside the noise, it takes painted shapes out of most images.
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
        "corrupted": 0.9,
    },
}

# The shortest training of each that is measured: bench/results/curve-*.json, and for `repair`
# docs/results/accuracy.md.
FEWEST_STEPS = {"published": 131, "fast": 236, "repair": 300}


def recipe_of(config: TrainingConfig) -> str:
    """The recipe that sees what a training sees."""
    if config.corrupted:
        return "repair"
    return "fast" if config.t_sampling == RECIPES["fast"]["t_sampling"] else "published"
