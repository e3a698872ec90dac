"""Recipes of training by name."""

from __future__ import annotations

from typing import Any

# What each changes of the published recipe. `fast`: the network sees the small
# times at which it scores, in many small steps at a larger learning rate.
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
}
