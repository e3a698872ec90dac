"""Ray and what comes with it, which are not part of the core install."""

from __future__ import annotations

import functools

from sprfast.system import libraries

require = functools.partial(libraries.require, extra="ray")
