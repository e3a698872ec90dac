"""Archives through the real Ray Data: every image once, with the scores of a single process,
whatever dies.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as arrow
import pytest
import ray
from pyarrow import parquet

import sprfast
from sprfast.data import images
from sprfast.deploy.ray import data as ray_data
from sprfast.deploy.ray.results import Results
from sprfast.errors import BackendError, DeviceLostError, InputError
from sprfast.formats import model as model_file
from support import ROOT

IMAGES = 10_000


@pytest.fixture(scope="module")
def saved(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "screw.safetensors"
    model_file.save(path, small_model)
    return path


@pytest.fixture(scope="module")
def model(saved):
    return ray_data.Model(str(saved), "cpu", "cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Ten thousand different images of 32x32, in ten folders."""
    root = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(1)
    for index in range(IMAGES):
        folder = root / f"{index // 1000}"
        folder.mkdir(exist_ok=True)
        contrast = random.uniform(0.2, 1.0)
        pixels = (random.random((32, 32, 3)) * 255 * contrast).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{index:05}.png", compress_level=1)
    return root


@pytest.fixture(scope="module")
def alone(archive, saved):
    """Path and (score, verdict) of each image by one process."""
    predictor = sprfast.load(saved, "cpu", "cpu")
    paths = sorted(archive.rglob("*.png"))
    found = {}
    for first in range(0, len(paths), 16):
        chunk = paths[first : first + 16]
        results = predictor.predict(chunk)
        found |= {str(path): (each.pred_score, each.verdict.value) for path, each in zip(chunk, results, strict=True)}
    return found


def rows(folder):
    """Every row of the answers."""
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in parquet.read_table(part).to_pylist()]


def scores(folder):
    found = rows(folder)
    answers = {row["path"]: (row["pred_score"], row["verdict"]) for row in found}
    assert len(found) == len(answers), "an image has two answers"
    return answers


def command_line(*arguments):
    command = [sys.executable, "-m", "sprfast", *map(str, arguments), "--json"]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


def workers():
    """Processes of the workers with a `Scorer` whose Ray this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                if b"MapWorker" in command and b"ray::" in command and is_below(os.getpid(), int(entry.name)):
                    found.append(int(entry.name))
            except OSError:  # it has ended
                continue
    return found


def is_below(ancestor, process):
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor


def test_ten_thousand_images_with_a_worker_killed_midway(archive, alone, model, tmp_path):
    killed = []

    def on_images(done, total):
        assert total == IMAGES
        if done > IMAGES // 3 and not killed:
            victims = workers()
            assert len(victims) == 2
            os.kill(victims[0], signal.SIGKILL)
            killed.append(victims[0])

    summary = ray_data.score(
        sorted(archive.iterdir()), tmp_path / "out", model, ray_data.Pool(workers=2), on_images=on_images
    )
    assert killed
    assert scores(tmp_path / "out") == alone
    assert (summary["images"], summary["already"], summary["interrupted"]) == (IMAGES, 0, False)
    assert sum(summary["counts"].values()) == IMAGES
    assert min(summary["counts"][name] for name in ("PASS", "REJECT")) > 100


def test_a_block_that_kills_every_worker_ends_the_run(archive, alone, model, tmp_path, monkeypatch):
    class Deadly(ray_data.Scorer):
        def __call__(self, batch):
            if any(file.endswith(b"00700.png") for file in batch["file"]):
                os._exit(1)
            return super().__call__(batch)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ray_data, "Scorer", Deadly)
        patch.setattr(ray_data, "RETRIES", 1)
        with pytest.raises(BackendError, match="a worker died, and again 1 times with the same images"):
            ray_data.score([archive / "0"], out, model)
    before = scores(out)
    assert 0 < len(before) <= 1000 - ray_data.BLOCK
    summary = ray_data.score([archive / "0"], out, model)
    assert summary["already"] == len(before)
    assert scores(out) == {path: value for path, value in alone.items() if Path(path).parent == archive / "0"}


def test_a_backend_that_fails_under_way_ends_the_run_with_its_own_words(archive, model, tmp_path, monkeypatch):
    class Failing(ray_data.Scorer):
        def __call__(self, batch):
            raise DeviceLostError("backend cpu: the device is gone")

    monkeypatch.setattr(ray_data, "Scorer", Failing)
    with pytest.raises(DeviceLostError) as raised:
        ray_data.score([archive / "0"], tmp_path / "out", model)
    assert str(raised.value) == "backend cpu: the device is gone"


def test_a_killed_run_goes_on_where_it_was(archive, alone, saved, tmp_path):
    out = tmp_path / "out"
    script = f"""
import pathlib
from sprfast.deploy.ray import data as ray_data
ray_data.PART = 300
model = ray_data.Model({str(saved)!r}, "cpu", "cpu")
ray_data.score([pathlib.Path({str(archive / "0")!r})], pathlib.Path({str(out)!r}), model)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = scores(out)
    assert 0 < len(before) < 1000
    model = ray_data.Model(str(saved), "cpu", "cpu")
    summary = ray_data.score([archive / "0"], out, model)
    assert summary["already"] == len(before)
    assert scores(out) == {path: value for path, value in alone.items() if Path(path).parent == archive / "0"}
    assert ray_data.score([archive / "0"], out, model)["already"] == 1000


def test_files_that_are_no_images_are_rows_with_error(archive, alone, model, tmp_path, monkeypatch):
    listed = sorted(str(path) for path in (archive / "3").glob("*.png"))[:40]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    listed += [str(tmp_path / "broken.png"), str(tmp_path / "absent.png"), listed[0]]
    (tmp_path / "list.parquet").mkdir()
    for name, paths in (("a", listed[:20]), ("b", listed[20:])):
        parquet.write_table(
            arrow.table({"path": paths, "camera": [1] * len(paths)}), tmp_path / "list.parquet" / f"{name}.parquet"
        )
    monkeypatch.chdir(tmp_path)
    summary = ray_data.score(
        [Path("list.parquet"), Path("broken.png")], Path("out"), model, ray_data.Pool(workers=2, least=1)
    )
    assert summary["images"] == 42
    assert summary["counts"]["ERROR"] == 2
    by_path = {row["path"]: row for row in rows(tmp_path / "out")}
    for name in ("broken.png", "absent.png"):
        row = by_path.pop(str(tmp_path / name))
        assert (row["pred_score"], row["verdict"]) == (None, "ERROR")
        assert name in row["reason"]
    assert {path: (row["pred_score"], row["verdict"]) for path, row in by_path.items()} == {
        path: alone[path] for path in listed[:40]
    }


def test_answers_of_something_else_are_not_mixed(archive, model, saved, tmp_path):
    ray_data.score([archive / "1" / "01000.png"], tmp_path / "out", model)
    with pytest.raises(InputError, match="another backend"):
        ray_data.score([archive / "1"], tmp_path / "out", ray_data.Model(str(saved), "eager", "cpu"))
    with (
        Results(tmp_path / "new", {"model_file_sha256": "1"}),
        pytest.raises(InputError, match="another process is writing"),
    ):
        Results(tmp_path / "new", {"model_file_sha256": "1"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").touch()
    with pytest.raises(InputError, match=r"photo\.png but no results\.json"):
        ray_data.score([archive / "1"], tmp_path / "other", model)


def test_a_damaged_part_is_named(archive, model, tmp_path):
    ray_data.score([archive / "1" / "01000.png"], tmp_path / "out", model)
    part = tmp_path / "out" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"part-000000\.parquet: is damaged"):
        ray_data.score([archive / "1"], tmp_path / "out", model)


def test_what_a_worker_cannot_do_is_an_error_here(archive, saved, tmp_path):
    with pytest.raises(InputError, match="setting"):
        ray_data.score([archive / "1"], tmp_path / "out", ray_data.Model(str(saved), "cpu", "cpu", setting="nosuch"))
    with pytest.raises(InputError, match="1 GPUs, the cluster has 0"):
        ray_data.score([archive / "1"], tmp_path / "new", ray_data.Model(str(saved), "triton"), ray_data.Pool(gpus=1))
    with pytest.raises(BackendError, match="backend auto cannot be chosen on this machine, name one: device cuda"):
        ray_data.score([archive / "1"], tmp_path / "new", ray_data.Model(str(saved)), ray_data.Pool(gpus=1))
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379", "127.0.0.1:99999"])
def test_where_no_cluster_is_the_error_comes_at_once(archive, model, tmp_path, address):
    began = time.monotonic()
    with pytest.raises(BackendError, match=rf"no cluster at {re.escape(address)} \("):
        ray_data.score([archive / "1"], tmp_path / "far", model, address=address)
    assert time.monotonic() - began < 20  # Ray itself would take 40
    assert not ray.is_initialized()


def test_what_listens_and_is_no_cluster_is_an_error_in_a_minute(archive, model, tmp_path):
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match=rf"no cluster at {address} \("):
            ray_data.score([archive / "1"], tmp_path / "far", model, address=address)
    assert time.monotonic() - began < 120
    assert not ray.is_initialized()


def test_the_command(archive, alone, saved, tmp_path):
    command = ["predict", saved, archive / "2", "--ray", "local", "--workers", "2"]
    done = command_line(*command, "--backend", "cpu", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["images"], document["already"], document["complete"]) == (1000, 0, True)
    assert scores(tmp_path / "out") == {
        path: value for path, value in alone.items() if Path(path).parent == archive / "2"
    }
    refused = command_line(*command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == ["sprfast: --ray: name the folder for the answers with --output"]


def test_an_interrupt_keeps_the_answers(archive, alone, saved, tmp_path):
    """As a terminal sends it: to the command and to all that Ray has started."""
    out = tmp_path / "out"
    folders = sorted(archive.iterdir())
    command = [
        sys.executable,
        "-m",
        "sprfast",
        "predict",
        saved,
        *folders,
        "--ray",
        "local",
        "--backend",
        "cpu",
        "-o",
        out,
        "--json",
    ]
    terminal, end = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=end,
        text=True,
        start_new_session=True,
    ) as process:
        os.close(end)
        shown = ""
        while not re.search(r"[1-9]\d*/10000", shown):
            shown += os.read(terminal, 4096).decode()
        os.killpg(process.pid, signal.SIGINT)
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        printed, _ = process.communicate(timeout=300)
    reader.join()
    assert process.returncode == 130
    document = json.loads(printed)
    assert not document["complete"]
    found = scores(out)
    assert 0 < len(found) < IMAGES
    assert sum(document["counts"].values()) == len(found)
    assert found.items() <= alone.items()


def drain(terminal):
    with contextlib.suppress(OSError):  # at the end
        while os.read(terminal, 4096):
            pass
    os.close(terminal)


def test_two_names_that_print_alike_are_not_taken_for_one(model, tmp_path):
    twins = [tmp_path / os.fsdecode(name) for name in (b"a\xff.png", rb"a\xff.png")]
    for path in twins:
        path.touch()
    assert images.display_name(twins[0]) == images.display_name(twins[1])
    with pytest.raises(InputError, match="two files have this printable name"):
        ray_data.score(twins, tmp_path / "out", model)
