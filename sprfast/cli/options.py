"""Options and arguments that several commands have, and what they stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console
from sprfast.config import PUBLISHED, Level, Preprocessing, Schedule
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.engine.engine import Engine
    from sprfast.engine.runner import Runner
    from sprfast.formats.model import Model

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `train` or `import` wrote.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cuda where there is one]")]
Category = Annotated[
    str | None, typer.Option(help="A category of DATA, or 'all'; absent: DATA is the category itself.")
]
ModelOrExport = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or an export of one.")]
BackendName = Annotated[
    str, typer.Option(help="auto (cpu on a CPU where that is built, else eager), or a backend that `doctor` lists.")
]
SettingName = Annotated[
    str, typer.Option("--setting", help="One that the model file holds; `calibrate --setting` adds them.")
]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="Of convolutions and stored maps: float32, bfloat16 or float16.")
]
ProcessTimeout = Annotated[
    str, typer.Option(help="Under torchrun: how long a process waits for the others before it gives up.")
]
Size = Annotated[int, typer.Option(help="Pixels at the network's input.")]
SizePolicy = Annotated[
    str, typer.Option(help="fit: shorter side to --size; stretch: a square; refuse: square images only.")
]
BitDepth = Annotated[int, typer.Option(help="Significant bits of 16-bit images, 8 to 16.")]
Alpha = Annotated[str, typer.Option(help="Transparent images: refuse, or composite over black.")]
Orientation = Annotated[str, typer.Option(help="EXIF orientation: exif (honour it) or ignore.")]
Frames = Annotated[str, typer.Option(help="Animated and multi-page files: refuse, or first.")]
Profiles = Annotated[str, typer.Option(help="RGB profiles other than sRGB: convert to it, or refuse.")]
Levels = Annotated[
    list[str] | None, typer.Option("--level", help="A sigma level T:DRAWS[:WEIGHT]; repeatable.  [default: 0.001:3]")
]


class RunByDefault(typer.core.TyperGroup):
    """A group of commands in which the command `run` need not be written: `bench MODEL` means
    `bench run MODEL`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Typer's, with `run` put in front where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs a model: the options that commands which score have in common."""

    backend: str = "auto"
    device: str | None = None
    precision: Any = "float32"  # checked by `backends.create`
    setting: str = PUBLISHED  # of those in the model file

    def engine(self, model: Model) -> Engine:
        """An engine for `model`."""
        from sprfast.engine.engine import Engine

        return Engine(model.using(self.setting), self.backend, self.device, self.precision)

    def open(self, path: Path) -> Engine | Runner:
        """An engine for a model file, or a runner for an export; a progress bar while TensorRT
        builds.
        """
        from sprfast.backends.sessions.session import TensorRtOptions
        from sprfast.engine.load import load

        with console.counter("building") as on_progress:
            tensorrt = TensorRtOptions(on_progress=lambda what, done, total: on_progress(done, total, what))
            return load(path, self.backend, self.device, self.precision, self.setting, tensorrt=tensorrt)


def preprocessing(
    size: int, size_policy: str, bit_depth: int, alpha: str, orientation: str, frames: str, profiles: str
) -> Preprocessing:
    """Preprocessing as the options of `train` and `import` describe it."""
    given = {
        "size": size,
        "size_policy": size_policy,
        "bit_depth": bit_depth,
        "alpha": alpha,
        "orientation": orientation,
        "frames": frames,
        "profiles": profiles,
    }
    checked: Preprocessing = Preprocessing.from_json(given)
    return checked


def schedule(levels: list[str] | None, noise: str = "gaussian") -> Schedule:
    """The schedule of sigma levels written as T:DRAWS or T:DRAWS:WEIGHT; the published one without
    any.
    """
    if not levels:
        return Schedule()
    parsed = []
    for text in levels:
        parts = text.split(":")
        try:
            t, draws, weight = float(parts[0]), int(parts[1]), float(parts[2]) if len(parts) > 2 else 1.0
        except (ValueError, IndexError) as error:
            raise InputError(f"--level {text!r}: write T:DRAWS or T:DRAWS:WEIGHT, for example 0.001:3") from error
        parsed.append(Level(t, draws, weight))
    checked: Schedule = Schedule.from_json({"levels": [level.to_json() for level in parsed], "noise": noise})
    return checked
