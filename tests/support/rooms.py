"""Rooms of the project and what each imports; run as a program it prints the map."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the ground up: a room imports from itself and from what comes before it.
ROOMS = (
    *(
        "face",
        "system",
        "method",
        "formats",
        "data",
        "lowering",
        "backends",
        "engine",
        "evaluation",
        "training",
        "line",
    ),
    *("deploy", "cli"),
)
FACE = ("errors", "config", "_version")  # importable from everywhere; `__init__` and `__main__` name the rest lazily
# what the two houses beside may import
BESIDE = {"kernels": (), "bench": tuple(room for room in ROOMS if room != "cli")}
LOOKS_BESIDE = {"kernels": ("system", "backends", "cli", "bench"), "bench": ("cli",)}  # which rooms may import them


def modules():
    """Dotted names below sprfast, such as "backends.eager", with their files."""
    found = {}
    for folder, prefix in ((ROOT / "sprfast", ()), (ROOT / "kernels", ("kernels",)), (ROOT / "bench", ("bench",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""], found["__main__"]
    return found


def room_of(name):
    """The room, or the house beside, of a module."""
    first = name.partition(".")[0]
    return "face" if first in FACE else first


def imported(path, known):
    """Names below sprfast that a file imports anywhere, in functions and for type checking too,
    with the line.
    """
    found = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import, write `from sprfast...`"
            base = node.module or ""
            inside = [
                f"{base}.{alias.name}"
                for alias in node.names
                if f"{base}.{alias.name}".removeprefix("sprfast.") in known
            ]
            names = inside or [base]
        else:
            continue
        found |= {name.removeprefix("sprfast."): node.lineno for name in names if name.startswith("sprfast.")}
    return found


def arrows():
    """For each room the rooms that it imports, with one example of each: {room: {room: "file:line
    imports module"}}.
    """
    known = modules()
    found: dict[str, dict[str, str]] = {}
    for name, path in known.items():
        for target, line in imported(path, known).items():
            found.setdefault(room_of(name), {}).setdefault(
                room_of(target), f"{path.relative_to(ROOT)}:{line} imports {target}"
            )
    return found


def allowed(room):
    """Rooms that `room` may import."""
    if room in BESIDE:
        return {room, *BESIDE[room], *(house for house, rooms in LOOKS_BESIDE.items() if room in rooms)}
    return {*ROOMS[: ROOMS.index(room) + 1], *(house for house, rooms in LOOKS_BESIDE.items() if room in rooms)}


def main():
    found = arrows()
    for room in (*ROOMS, *BESIDE):
        targets = found.get(room, {})
        print(
            f"{room:<11} imports "
            f"{', '.join(name for name in (*ROOMS, *BESIDE) if name in targets and name != room) or 'nothing'}"
        )
        for target, example in targets.items():
            if target not in allowed(room):
                print(f"{'':11} NOT ALLOWED: {example}")


if __name__ == "__main__":
    main()
