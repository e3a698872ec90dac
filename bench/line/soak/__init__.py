"""A line under load for as long as it takes to see whether it loses, invents, mixes up or leaks
anything.
"""

from sprfast.bench.line.soak.soaking import Options, run

__all__ = ["Options", "run"]
