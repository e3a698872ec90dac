"""Two audits in the spirit of MLPerf Inference's TEST01 and TEST04: is what was timed the real work?

- Outputs of timed queries, sampled at random, equal the outputs of the same queries untimed.
- One image again and again is not more than `ALLOWED` faster than distinct images: nothing is cached. It
  fails when three quarters of the rounds say so, which a busy machine does not bring about.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sprfast.bench import timing
from sprfast.bench.peers import Maps

SAMPLED = 3  # queries a scenario whose outputs are compared, at most
SHARE = 0.2  # of the queries, until so many are
ALLOWED = 1.10  # ratio of the time of distinct images to that of one repeated
ROUNDS = 7  # of the second audit, at least


class Outputs:
    """Compares outputs of timed queries with untimed ones, for one candidate over all scenarios.

    Args:
        maps: the candidate.
        seed: chooses the queries.
    """

    def __init__(self, maps: Maps, seed: int = 0) -> None:
        self._maps = maps
        self._random = random.Random(seed)
        self._last: tuple[Tensor, Tensor] | None = None
        self._compared: dict[str, int] = {}
        self._equal = True

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The candidate's maps, remembered until the next call."""
        self._last = self._maps(x)
        return self._last

    def after(self, scenario: str, query: Callable[[], Tensor]) -> None:
        """To be called after a timed query, outside of the time: perhaps do it again and compare bit for bit."""
        done = self._compared.get(scenario, 0)
        if self._last is None or done == SAMPLED or (done and self._random.random() > SHARE):
            return
        timed = [part.clone() for part in self._last]  # the next call may write into them
        self._equal &= all(map(torch.equal, timed, self._maps(query())))
        self._compared[scenario] = done + 1

    def result(self) -> dict[str, Any]:
        """How many queries were compared, and whether all were equal."""
        return {"compared": sum(self._compared.values()), "passed": self._equal}


def repeated(maps: Maps, samples: Tensor, seconds: float) -> dict[str, Any] | None:
    """Time of distinct images over that of one image repeated, the two taking turns; None for fewer than two images.

    Args:
        samples: (N, 3, H, W).
        seconds: for both; `ROUNDS` rounds are made whatever they cost.
    """
    if samples.shape[0] < 2:
        return None

    def distinct(index: int) -> object:
        first = 1 + index % (samples.shape[0] - 1)
        return maps(samples[first : first + 1])

    calls = {"distinct": distinct, "repeated": lambda index: maps(samples[:1])}
    measured = list(timing.rounds(calls, samples.device, seconds, ROUNDS))
    ratios = [times["distinct"] / times["repeated"] for times in measured]
    quartiles = {f"p{q}": timing.percentile(ratios, q) for q in (25, 50, 75)}
    return {"ratio": quartiles, "rounds": len(measured), "allowed": ALLOWED, "passed": quartiles["p25"] <= ALLOWED}
