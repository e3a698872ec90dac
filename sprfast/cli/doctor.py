"""The command `doctor`: what can run on this machine."""

from __future__ import annotations

from sprfast.cli import console
from sprfast.cli.options import Json


def doctor(json_: Json = False) -> None:
    """Versions, devices, and which backend can run or why not."""
    from sprfast.backends import registry
    from sprfast.backends.sessions import session
    from sprfast.system import environment

    listed = {name: registry.unavailable(name) or "can run" for name in registry.NAMES}
    exports = {name: session.unavailable(name) or "can run" for name in session.BACKENDS}
    automatic = registry.choose("auto") if listed["eager"] == "can run" else None
    found = {"backends": listed, "backend_auto": automatic, "exports": exports}
    summary = environment.describe() | found
    console.emit(summary, json_)
