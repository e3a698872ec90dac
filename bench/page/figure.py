"""The plot of throughput of a bench report as an SVG file of its own.

`python -m sprfast.bench.page.figure REPORT.json OUT.svg` draws it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sprfast.bench.core import report_file
from sprfast.bench.page import plots
from sprfast.bench.page.render import throughputs
from sprfast.system import files


def write(report: Path, path: Path) -> None:
    """Draw the Offline throughput of a report.

    Args:
        report: a file that `sprfast bench` wrote.
        path: of the SVG file.

    Raises:
        InputError: the report is not one, or the file cannot be written.
    """
    files.write_bytes(path, plots.throughput(throughputs(report_file.load(report)["candidates"])).encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
