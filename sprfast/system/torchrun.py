"""Which of torchrun's processes this one is, by the variables that torchrun sets; without
PyTorch.
"""

from __future__ import annotations

import os

from sprfast.errors import InputError


def rank() -> int:
    """Rank of this process among all, from 0; 0 where torchrun did not start it."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes there are on all machines; 1 where torchrun did not start this one."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Rank of this process on its machine, which is the number of its CUDA device; 0 where
    torchrun did not start it.
    """
    return _number("LOCAL_RANK", 0)


def is_first() -> bool:
    """Whether this is the process that writes and prints: the first of torchrun's, or the
    only one.
    """
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}: the environment has {text!r}, expected a number as torchrun sets it")
    return int(text)
