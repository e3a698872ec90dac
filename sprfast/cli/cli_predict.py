"""The commands that put a model to work: `predict` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelOrExport, PrecisionName, SettingName
from sprfast.errors import InputError


def predict(
    model: ModelOrExport,
    paths: Annotated[
        list[Path],
        typer.Argument(help="Images, or folders of images; with --ray also Parquet files with a column `path`."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results.jsonl and the overlays; with --ray for Parquet files."),
    ] = None,
    setting: SettingName = "published",
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Score on a Ray cluster, `local` for this machine; goes on where a run stopped."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --ray: workers, each with a CPU thread.  [default: 1]")
    ] = None,
    worker_gpus: Annotated[float | None, typer.Option(help="With --ray: GPUs of each worker.  [default: 0]")] = None,
    json_: Json = False,
) -> None:
    """Score images: PASS, REJECT or ERROR; exit 1 if any image ended in ERROR."""
    from sprfast.cli import predict_commands

    runtime = predict_commands.Runtime(backend, device, precision, setting)
    run: Any
    if ray is not None:
        from sprfast.cli import scale_commands

        run = scale_commands.predict(model, paths, output, runtime, ray, workers, worker_gpus)
    else:
        if workers is not None or worker_gpus is not None:
            raise InputError("--workers and --worker-gpus are for --ray")
        run = predict_commands.predict(model, paths, output, runtime)
    console.emit(run.to_json(), json_, run.table)
    if run.interrupted:
        raise typer.Exit(130)
    raise typer.Exit(1 if run.counts["ERROR"] else 0)


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file; for triton-repository also an export of one.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write; for triton-repository a folder that does not exist yet."),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="onnx (onnxruntime and others), tensorrt (ONNX for its builder), plan (our CPU kernels), or "
            "triton-repository "
            "(for NVIDIA's Triton Inference Server; of an ONNX export also the model NAME-onnx for its onnxruntime "
            "backend)."
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="Pixels at the network's input, N or HEIGHTxWIDTH.  [default: the model's]")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a call that the graph is fixed to.  [default: any]")] = None,
    precision: PrecisionName = "float32",
    quantize: Annotated[
        str | None, typer.Option(help="int8 or float8: quantize the convolutions but the first; needs --images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Good images, not trained on, to compare scores on and to find scales.")
    ] = None,
    setting: SettingName = "published",
    backend: Annotated[
        str | None, typer.Option(help="triton-repository: what computes there.  [default: auto]")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="triton-repository: cpu, cuda (each GPU) or cuda:N.  [default: cuda where the server has one]"
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="triton-repository: images that are scored together.  [default: 16]")
    ] = None,
    queue: Annotated[int | None, typer.Option(help="triton-repository: requests that may wait.  [default: 64]")] = None,
    queue_timeout: Annotated[
        str | None, typer.Option(help="triton-repository: how long one may wait.  [default: 30s]")
    ] = None,
    instances: Annotated[int | None, typer.Option(help="triton-repository: processes a device.  [default: 1]")] = None,
    json_: Json = False,
) -> None:
    """A file that runs without PyTorch, with a certificate that it scores like the model; exit 1,
    and no file, where it does not.
    """
    from sprfast.cli import export_commands

    form = {"size": size, "batch": batch, "quantize": quantize, "images": images}
    queueing = {"max_batch": max_batch, "queue": queue, "queue_timeout": queue_timeout}
    served = {"backend": backend, "device": device, "instances": instances, **queueing}
    if to == export_commands.REPOSITORY:
        export_commands.refuse(to, form)
        summary = export_commands.repository(model, output, export_commands.serving(precision, setting, served))
        console.emit(summary, json_, lambda: console.fields_table(summary))
    else:
        export_commands.refuse(to, served)
        summary = export_commands.export(
            model, output, export_commands.request(to, size, batch, precision, quantize), images, setting
        )
        console.emit(summary, json_, lambda: export_commands.table(summary))
