"""The command `kernels`: what the compiler makes of every kernel that the published network
launches.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from sprfast.cli import console
from sprfast.cli.options import Json
from sprfast.config import NetworkConfig, Precision, Preprocessing
from sprfast.errors import BackendError, InputError

if TYPE_CHECKING:
    from sprfast.kernels.triton.compile_report import Compiled


def kernels(
    arch: Annotated[str, typer.Option(help="Architectures, with commas.")] = "sm_80,sm_86,sm_89,sm_90,sm_100",
    precision: Annotated[str, typer.Option(help="Precisions, with commas.")] = "float32,bfloat16,float16",
    size: Annotated[int, typer.Option(help="Pixels at the network's input.")] = 192,
    json_: Json = False,
) -> None:
    """Compile every kernel for GPUs that need not be here: registers, spills, shared memory, width
    of accesses, loads in flight; and how many launches one image takes. Exit 1 on a problem.
    """
    document, compiled = _compile_all(arch.split(","), precision.split(","), size)
    console.emit(document, json_, lambda: _tables(document, compiled))
    raise typer.Exit(1 if document["problems"] else 0)


def _tables(document: dict[str, Any], compiled: list[Compiled]) -> RenderableType:
    """A table an architecture, one line a compiled kernel; then the launches of one image, and the
    problems.
    """
    from sprfast.kernels.triton import compile_report

    tables = []
    for capability in dict.fromkeys(each.capability for each in compiled):
        header, *lines = compile_report.rows([each for each in compiled if each.capability == capability])
        title = f"sm_{capability}, {document['size']}x{document['size']}, Triton {document['triton']}"
        tables.append(Table(*header, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)))
        for line in lines:
            tables[-1].add_row(*line)
    ours, convolutions = document["launches"]["kernels"], document["launches"]["convolutions"]
    launches = f"{ours + convolutions} launches for one image: {ours} of these kernels, {convolutions} convolutions"
    return Group(*tables, launches, *(document["problems"] or ["no problems"]))


def _compile_all(architectures: list[str], precisions: list[str], size: int) -> tuple[dict[str, Any], list[Compiled]]:
    """What the compiler makes of the kernels that score square images with the published network,
    for each architecture: one image, whose norms are one launch, and the most that are scored
    together.

    Raises:
        InputError: an architecture or precision is not known.
        BackendError: Triton is missing, or in its interpreter.
    """
    import torch

    from sprfast.backends import triton
    from sprfast.engine.predictor import MAX_BATCH
    from sprfast.formats.model import Model
    from sprfast.lowering.fold import fold
    from sprfast.method import unet
    from sprfast.method.scoring_mode import ScoringMode
    from sprfast.system import environment

    unknown = set(precisions) - set(get_args(Precision))
    if unknown:
        raise InputError(f"--precision {', '.join(sorted(unknown))}: choose from {', '.join(get_args(Precision))}")
    reason = triton.missing_compiler()
    if reason:
        raise BackendError(f"kernels: {reason}")
    from sprfast.kernels.triton import compile_report  # needs Triton

    try:
        capabilities = [compile_report.capability(name) for name in architectures]
    except ValueError as error:
        raise InputError(f"--arch: {error}") from error
    network = NetworkConfig()
    weights = {name: torch.zeros(shape) for name, shape in unet.parameter_shapes(network).items()}
    plan = fold(Model(network, ScoringMode(), Preprocessing(size=size), weights))
    compiled: list[Compiled] = []
    with console.counter("compiling") as on_done:
        for index, capability in enumerate(capabilities):
            launches = [
                triton.launches(plan, each, images, size, size, capability)  # type: ignore[arg-type]
                for images in (1, MAX_BATCH)
                for each in precisions
            ]
            compiled += compile_report.compile_launches(itertools.chain(*launches), capability)
            on_done(index + 1, len(capabilities))
    # of one image, in any precision on any architecture; draws are convolved when they are new
    ours = sum(each.name != "noise_conv3x3" for each in launches[0])
    document = {
        "triton": environment.version("triton") or "",
        "size": size,  # of the images, both sides
        "launches": {"kernels": ours, "convolutions": 2 * len(plan.blocks) - 1},  # the first one is ours
        "compiled": [each.to_json() for each in compiled],
        "problems": compile_report.problems(compiled),
    }
    return document, compiled
