"""Names, locales, file systems and limits as other people's machines have them; mounts are made in
a namespace of their own.
"""

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sprfast.config import Preprocessing
from sprfast.data.images import display_name, load_image
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.errors import InputError, ModelFileError
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from sprfast.system import files
from support import ROOT
from support.command_line import without_progress

NAMES = [b" two  spaces ", "grün 検査".encode(), "e\u0301".encode(), b"latin-\xfc", b"n" * 255, b"-o", b"CON"]


def command(arguments, environment=(), before=()):
    """`sprfast` in a process of its own, in two minutes at most."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **dict(environment)}
    words = [*before, sys.executable, "-m", "sprfast", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, timeout=120, check=False)


def one_line(done, code):
    """Whether a command failed as it should."""
    said = without_progress(done.stderr.decode(errors="replace"))
    return done.returncode == code and len(said) == 1 and said[0].startswith("sprfast: ")


@pytest.fixture(scope="module")
def plan_path(small_model, tmp_path_factory):
    """An export in a folder of its own, which commands open without PyTorch and so sooner."""
    if reason := library.unavailable():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    export.export(small_model, path, Request("plan"))
    return path


def inside(mounts, *words):
    """The words of a command in a mount namespace of its own, where `mounts` have been made."""
    script = f'{mounts} && exec "$@"'
    return ["unshare", "--mount", "sh", "-ec", script, "sh", *words]


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    try:
        done = subprocess.run(
            inside(f"mount -t tmpfs -o size=1m none '{folder}'", "true"), capture_output=True, timeout=30, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")


# Names.


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_model_files_of_odd_names_are_written_and_read(name, small_model, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    model_file.save(path, small_model)
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert model_file.load(path).sha256 == small_model.sha256


@pytest.mark.parametrize("name", ["n" * 256, "nul\0name", "\ud800", "folder\0/name"], ids=ascii)
def test_names_that_no_file_can_have_are_refused(name, tmp_path):
    path = str(tmp_path / name)
    for write in (lambda: files.write_bytes(path, b""), lambda: files.check_writable(path)):
        with pytest.raises(InputError, match="cannot be written"):
            write()
    with pytest.raises(ModelFileError, match=r"no such file|cannot be read"):
        model_file.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_image(path, Preprocessing())
    display_name(path).encode("utf-8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "nul\0name", "\ud800", ".", ""], ids=ascii)
def test_output_names_stay_in_their_folder(name, tmp_path):
    with pytest.raises(InputError):
        files.confined(tmp_path, name)


@pytest.mark.parametrize("name", ["CON", "..x", "a\\..\\b", " ", "line\nfeed"])
def test_output_names_that_are_only_odd_are_kept(name, tmp_path):
    assert files.confined(tmp_path, name) == tmp_path.resolve() / name


def test_a_long_name_among_those_given_is_an_error_line(run, model_path, pictures):
    code, out, _ = run("predict", model_path, "n" * 300 + ".png", pictures[0], "--json")
    assert code == 1
    assert [row["verdict"] == "ERROR" for row in json.loads(out)["results"]] == [True, False]


# Locales.


def locale_environment(name, folder):
    """Variables for a locale; one that is not installed is compiled, where that is possible."""
    if name == "ASCII":
        return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef here")
    language, charmap = name.split(".")
    done = subprocess.run(
        ["localedef", "-i", language, "-f", charmap, folder / name], capture_output=True, timeout=60, check=False
    )
    if not (folder / name).exists():
        pytest.skip(f"the locale cannot be compiled: {done.stderr.decode()}")
    return {"LOCPATH": str(folder), "LC_ALL": name}


LOCALE = """
import json, locale, os, sys
locale.setlocale(locale.LC_ALL, "")
from sprfast.formats import tensors as archive
from sprfast.engine import engine
from sprfast.formats import model as model_file
path, picture, copy = sys.argv[1:]
model = model_file.load(path)
model_file.save(copy, model)
assert open(copy, "rb").read() == open(path, "rb").read()
results = [engine.Engine(model, name, "cpu").predict(picture).pred_score for name in ("eager", "auto")]
point, encoding = locale.localeconv()["decimal_point"], sys.getfilesystemencoding()
print(json.dumps([point, encoding, results, str(model.preprocessing.size / 5)]))
"""


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("de_DE.UTF-8", ","),
        pytest.param("ASCII", ".", marks=pytest.mark.process),
        pytest.param("de_DE.ISO-8859-1", ",", marks=pytest.mark.process),
    ],
)
def test_locales_change_no_number_and_no_byte(name, point, model_path, pictures, small_model, tmp_path):
    environment = locale_environment(name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOCALE, model_path, pictures[0], tmp_path / "copy"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decimal_point, _, scores, size = json.loads(done.stdout)
    assert decimal_point == point
    assert size == "6.4"
    assert scores == [
        Engine(small_model, backend, "cpu").predict(pictures[0]).pred_score for backend in ("eager", "auto")
    ]


@pytest.mark.parametrize("name", ["ASCII", pytest.param("de_DE.ISO-8859-1", marks=pytest.mark.process)])
def test_odd_names_in_locales_without_utf8(name, plan_path, pictures, tmp_path):
    environment = locale_environment(name, tmp_path)
    folder = tmp_path / "parts"
    folder.mkdir()
    for odd in NAMES[:4]:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + odd + b".png")).write_bytes(pictures[0].read_bytes())
    done = command(["predict", plan_path, folder, "-o", tmp_path / "out", "--json"], environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4
    assert len({row["pred_score"] for row in rows}) == 1
    assert json.loads(done.stdout)["results"] == rows


# File systems and limits.


def test_a_read_only_machine_without_home_shared_memory_and_descriptors(can_mount, plan_path, pictures):
    folder = plan_path.parent
    read_only = f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
    mounts = f"{read_only} && mount -t tmpfs -o ro,size=4k none /dev/shm && ulimit -n 64"
    bare = {"HOME": "/nonexistent", "TMPDIR": str(folder)}
    expected = json.loads(command(["predict", plan_path, *pictures, "--json"]).stdout)
    done = command(["predict", plan_path, *pictures, "--json", "--quiet"], bare, inside(mounts))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"\n") <= 1, done.stderr
    got = json.loads(done.stdout)
    assert [row["pred_score"] for row in got["results"]] == [row["pred_score"] for row in expected["results"]]
    refused = command(["calibrate", plan_path, "--threshold", "1", "--quiet"], bare, inside(mounts))
    assert one_line(refused, 2), refused.stderr
    assert b"Read-only file system" in refused.stderr


WRITERS = """
import sys
import numpy as np
from sprfast.formats import tensors as archive
from sprfast.data import figure
from sprfast.system import files
from sprfast.formats import onnx as onnx_file
from sprfast.errors import InputError

folder, noise = sys.argv[1], np.random.default_rng(0)
document = {"format_version": 2, "kind": "onnx"}
writers = {
    "report": lambda path: files.write_bytes(path, bytes(2_000_000)),
    "model": lambda path: archive.write(path, {"w": noise.random(300_000)}, {}, kind="model"),
    "onnx": lambda path: onnx_file.write(path, bytes(2_000_000), document),
    "picture": lambda path: figure.save_png(path, noise.integers(0, 255, (900, 900, 3), np.uint8)),
}
for name, write in writers.items():
    path = f"{folder}/{name}"
    open(path, "wb").write(b"old")
    try:
        write(path)
    except InputError as error:
        assert "No space left on device" in str(error), error
        assert len(str(error).splitlines()) == 1
    else:
        raise AssertionError(name)
    assert open(path, "rb").read() == b"old"
import os
assert sorted(os.listdir(folder)) == sorted(writers), os.listdir(folder)
files.write_bytes(f"{folder}/report", bytes(900_000))  # what was begun takes no space any more
"""


def test_a_full_disk_keeps_every_old_file_and_leaves_nothing_behind(can_mount, tmp_path):
    words = inside(f"mount -t tmpfs -o size=1m none '{tmp_path}'", sys.executable, "-c", WRITERS, str(tmp_path))
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_results_on_a_full_disk_are_an_error_line(can_mount, plan_path, pictures, tmp_path):
    full = (
        f"mount -t tmpfs -o size=8k none '{tmp_path / 'out'}' && head -c 8192 /dev/zero "
        f">'{tmp_path / 'out' / 'filler'}'"
    )
    (tmp_path / "out").mkdir()
    done = command(["predict", plan_path, pictures[0], "-o", tmp_path / "out", "--quiet"], before=inside(full))
    assert one_line(done, 2), done.stderr
    assert b"No space left on device" in done.stderr


def test_everything_that_lasts_is_written_whole_or_not_at_all():
    """No module opens a file for writing by itself, but those that write beside, sync and rename,
    and one that opens a lock.
    """
    modes = {"w", "wb", "x", "xb", "a", "ab", "r+", "r+b", "w+", "wb+"}
    found = set()
    for path in (ROOT / "sprfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = {
                value.value
                for value in [*node.args, *(keyword.value for keyword in node.keywords)]
                if isinstance(value, ast.Constant)
            }
            whole = ast.unparse(node.func) in ("write_bytes", "files.write_bytes")
            if (name in ("open", "fdopen") and texts & modes) or (name in ("write_text", "write_bytes") and not whole):
                found.add(path.name)
    assert found == {"files.py", "cache.py", "results.py"}  # of results only the lock, which holds nothing


# Clocks.

WALL_CLOCKS = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "datetime.datetime.now",
    "time.localtime",
}
# The date of a report, of a cached plan, of a row of `predict`, of a record of a log, of an answer
# on a page and in a message, which nothing computes with.
LABELS = {"environment.py", "tensorrt.py", "results.py", "verdict_log.py"}
LABELS |= {"history.py", "message.py", "mqtt.py", "webhook.py", "results_page.py"}


def test_no_time_is_measured_by_a_clock_that_may_be_set():
    found = set()
    for folder in ("sprfast", "bench", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
            found |= {path.name for node in calls if ast.unparse(node.func) in WALL_CLOCKS}
    assert found == LABELS


def test_a_clock_set_back_an_hour_changes_no_result(small_model, pictures, monkeypatch):
    engine = Engine(small_model, "eager", "cpu")
    expected = engine.predict(pictures[0])
    backwards = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: next(backwards))
    result = engine.predict(pictures[0])
    assert result.pred_score == expected.pred_score
    assert 0 < result.milliseconds < 60_000


# The network.

SERVERS = {"http.server", "socketserver", "wsgiref", "xmlrpc", "flask", "fastapi", "uvicorn", "aiohttp", "tornado"}


def test_nothing_here_listens():
    """There is no server but the page of a station, and so none of its faults; what
    `sprfast.line.telemetry` counts is served by whoever imports it. The controller that sinks are
    tried with is at 127.0.0.1, and in no command.
    """
    known = {ROOT / "bench/line/controller.py", ROOT / "sprfast/line/station/server.py"}
    for folder in ("sprfast", "bench", "kernels"):
        for path in {*(ROOT / folder).rglob("*.py")} - known:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [getattr(node, "module", None)]
                )
                assert not SERVERS & set(names), path
                called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
                assert called not in ("listen", "start_http_server", "serve_forever"), path
