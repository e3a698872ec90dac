"""docs/getting-started.md: both ways from photos to a station, each command run as it is printed
there.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data.datasets import image_files
from sprfast.data.images import read_rgb
from support import ROOT, photos
from support.command_line import next_command
from support.line_cases import PATIENCE

pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'sprfast[heic]'")

PAGE = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
QUICK = ["--steps", "30", "--width", "32"]  # in place of ten minutes
SIDE = 96


def drawn(seed, bad):
    """A plate with a soft light on it, and on a bad one a rough patch."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    light = np.cos(3 * (rows - random.random())) * np.cos(3 * (columns - random.random()))
    pixels = [150, 80, 60] + 50 * light[..., None] * [1.0, 0.9, 0.6] + random.normal(0, 2, (SIDE, SIDE, 3))
    if bad:
        top, left = random.integers(5, 30, 2)
        pixels[top : top + 60, left : left + 60] += random.normal(0, 80, (60, 60, 3))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def drawings():
    return [drawn(seed, bad=False) for seed in range(68)], [drawn(seed, bad=True) for seed in range(100, 109)]


def colour(picture):
    return np.asarray(picture).astype(float).mean((0, 1))


def commands(title):
    """Those of the section's block that begins with a training, without `sprfast`."""
    section = re.search(rf"^## {title}\n(.*?)^## ", PAGE, re.S | re.M)[1]
    (block,) = re.findall(r"^```\n(sprfast train .*?)^```", section, re.S | re.M)
    lines = block.replace("\\\n", " ").splitlines()
    assert all(line.startswith("sprfast ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def test_photos_in_p3_show_the_same_parts_by_other_numbers(drawings, tmp_path):
    photos.write(tmp_path, *drawings)
    good = tmp_path / "photos" / "good"
    assert len(image_files([good], recursive=True)) == 60
    assert len(image_files([good / "late shift"])) == 1
    for name, drawing in (("IMG_0003.HEIC", drawings[0][2]), ("IMG_0004.jpg", drawings[0][3])):
        assert np.abs(colour(read_rgb(good / name, Preprocessing())) - colour(drawing)).max() < 1
    assert np.abs(colour(PIL.Image.open(good / "IMG_0004.jpg")) - colour(drawings[0][3])).max() > 4


@pytest.mark.process
@pytest.mark.parametrize("title", ["From photos to verdicts", "For users of anomalib"])
def test_five_commands_lead_from_photos_to_a_station_that_rejects(run, drawings, tmp_path, monkeypatch, title):
    photos.write(tmp_path, *drawings)
    monkeypatch.chdir(tmp_path)
    given = commands(title)
    assert len(given) <= 5
    for command, following in itertools.pairwise(given):
        at = command.index("--time-limit") if "--time-limit" in command else None
        code, out, err = run(*(command if at is None else command[:at] + QUICK + command[at + 2 :]))
        assert (code, "left out" in err) == (0, False), err
        told = [os.path.relpath(part) if os.path.isabs(part) else part for part in next_command(err)]
        assert [{"NEW_IMAGES": "new-photos"}.get(part, part) for part in told] == following
        if command[0] == "train":
            assert "48 images, 12 held back" in out
        if command[0] == "calibrate":
            assert "5 of 5 are caught" in out
    watch(given[-1], tmp_path / "new-photos")


def watch(station, folder):
    """Start the station, and put copies of photos into its folder, the good ones first."""
    command = [sys.executable, "-m", "sprfast", *station, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    good, bad = (sorted(folder.glob(f"{name}-*.jpg")) for name in ("good", "bad"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            for path in (*good, *bad):
                shutil.copy(path, folder / f"next-{path.name}")
            rejected, wanted = [], {f"next-{path.name}" for path in bad}
            while not wanted <= {*rejected}:
                rejected.append(re.match(r"reject (\S+): score \d", process.stdout.readline())[1])
            process.send_signal(signal.SIGINT)
            summary = json.loads(process.communicate(timeout=PATIENCE)[0].splitlines()[-1])
        finally:
            process.kill()
    assert summary["taken"] == len(good) + len(bad)
    assert summary["PASS"] >= len(good) - 1
