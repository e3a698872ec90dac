"""What one call of a GPU check leaves to the next: the truth, and what compilers have cached. And
its results as one file, since few files may come back from a machine with a GPU.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sprfast.bench.core import report_file
from sprfast.bench.gpu.truth import FILE
from sprfast.errors import InputError

SUMMARY = "summary.json"
ARCHIVE = "compile_cache.tar.xz"
RESULTS = "reports.tar.gz"  # every report, log and list of clocks
# Triton writes a cache's own absolute path into it, so that it is of use at the same path only.
CACHE = Path.home() / ".cache" / "sprfast-gpu-check"
# What compilers keep for people to read, most of a cache.
READABLE = (".ttir", ".ttgir", ".llir", ".ptx", ".source", ".log", ".lock")


def variables() -> dict[str, str]:
    """The environment in which compilers use `CACHE`."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"), "TRITON_CACHE_DIR": str(CACHE / "triton")}


def take(earlier: Path, work: Path) -> dict[str, Any] | None:
    """The truth of an earlier call to `work`, and its cache to where compilers look.

    Returns:
        Its summary, if it has one.

    Raises:
        InputError: the folder has neither truth nor cache, or a file is damaged.
    """
    archive, truth = earlier / ARCHIVE, earlier / FILE
    if not archive.exists() and not truth.exists():
        raise InputError(f"{earlier}: has no {FILE} and no {ARCHIVE}; give the folder of an earlier call")
    if truth.exists():
        shutil.copyfile(truth, work / FILE)
    if archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(CACHE, filter="data")
        except (OSError, tarfile.TarError, EOFError, lzma.LZMAError) as error:
            raise InputError(f"{archive}: cannot be unpacked ({error})") from error
    summary = earlier / SUMMARY
    return report_file.parsed(summary) if summary.exists() else None


def leave_cache(folder: Path) -> None:
    """`CACHE` into `folder`, without what only people read."""
    if CACHE.exists():
        paths = (path for path in sorted(CACHE.rglob("*")) if path.is_file() and path.suffix not in READABLE)
        _pack(folder / ARCHIVE, CACHE, paths, "w:xz", preset=1)


def leave_results(folder: Path, work: Path) -> None:
    """All files of `work` into `folder`; the truth beside them, so that the next call finds it."""
    _pack(folder / RESULTS, work, sorted(path for path in work.iterdir() if path.name != FILE), "w:gz")
    if (work / FILE).exists() and not (folder / FILE).exists():
        shutil.copyfile(work / FILE, folder / FILE)


def _pack(archive: Path, root: Path, paths: Iterable[Path], mode: str, **options: int) -> None:
    beside = archive.with_name(f".{archive.name}")
    with tarfile.open(beside, mode, **options) as packed:  # type: ignore[call-overload]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it was the draft of a report
                packed.add(path, path.relative_to(root))
    beside.replace(archive)
