"""The command `doctor`: what can run on this machine."""

from __future__ import annotations

from sprfast.backends.sessions import session
from sprfast.cli import console
from sprfast.cli.options import Json


def doctor(json_: Json = False) -> None:
    """Versions, devices, and which backend can run or why not."""
    from sprfast.backends import registry as backends
    from sprfast.system import environment

    listed = {name: backends.unavailable(name) or "can run" for name in backends.NAMES}
    exports = {name: session.unavailable(name) or "can run" for name in session.BACKENDS}
    found = {"backends": listed, "backend_auto": backends.choose("auto"), "exports": exports}
    summary = environment.describe() | found
    console.emit(summary, json_, lambda: console.fields_table(summary))
