"""A line under load for as long as it takes to see whether it loses, invents, mixes up or leaks
anything.
"""

from sprfast.bench.line.soak.options import SoakOptions
from sprfast.bench.line.soak.soaking import run

__all__ = ["SoakOptions", "run"]
