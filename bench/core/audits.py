"""Two audits in the spirit of MLPerf Inference's TEST01 and TEST04: is what was timed the real
work?

- Outputs of timed queries, sampled at random, equal the outputs of the same queries untimed.
- One image again and again is not more than `ALLOWED` faster than distinct images: nothing is
  cached. It fails when three quarters of the rounds say so, which a busy machine does not bring
  about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from sprfast.bench.core import timing
from sprfast.bench.core.work import Answer, Work

SAMPLED = 3  # queries a scenario whose outputs are compared, at most
SHARE = 0.2  # of the queries, until so many are
ALLOWED = 1.10  # ratio of the time of distinct images to that of one repeated
ROUNDS = 7  # of the second audit, at least


class Outputs:
    """Compares outputs of timed queries with untimed ones, for one candidate over all scenarios."""

    def __init__(self, work: Work, answer: Answer) -> None:
        self._work, self._answer = work, answer
        self._random = random.Random(0)
        self._last: tuple[Sequence[int], Any] | None = None
        self._compared: dict[str, int] = {}
        self._equal = True

    def __call__(self, indices: Sequence[int]) -> Any:
        """The candidate's answer for these samples, remembered until the next call."""
        returned = self._answer(self._work.take(indices))
        self._last = indices, returned
        return returned

    def after(self, scenario: str) -> None:
        """To be called after a timed query, outside of the time: perhaps do it again and compare
        bit for bit.
        """
        done = self._compared.get(scenario, 0)
        if self._last is None or done == SAMPLED or (done and self._random.random() > SHARE):
            return
        indices, returned = self._last
        # the next call may write into them
        timed = {name: value.clone() for name, value in self._work.results(returned).items()}
        again = self._work.results(self._answer(self._work.take(indices)))
        self._equal &= all(torch.equal(timed[name], again[name]) for name in timed)
        self._compared[scenario] = done + 1

    def result(self) -> dict[str, Any]:
        """How many queries were compared, and whether all were equal."""
        return {"compared": sum(self._compared.values()), "passed": self._equal}


def repeated(work: Work, answer: Answer, seconds: float) -> dict[str, Any] | None:
    """Time of distinct images over that of one image repeated, the two taking turns for `seconds`,
    `ROUNDS` times at least; None for fewer than two images.
    """
    if len(work) < 2:
        return None

    def distinct(index: int) -> object:
        return answer(work.take([1 + index % (len(work) - 1)]))

    calls = {"distinct": distinct, "repeated": lambda index: answer(work.take([0]))}
    measured = list(timing.rounds(calls, work.device, seconds, ROUNDS))
    ratios = [times["distinct"] / times["repeated"] for times in measured]
    quartiles = {f"p{q}": timing.percentile(ratios, q) for q in (25, 50, 75)}
    return {"ratio": quartiles, "rounds": len(measured), "allowed": ALLOWED, "passed": quartiles["p25"] <= ALLOWED}
