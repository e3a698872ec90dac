"""The command `station` as its user runs it, in a process of its own where it runs on."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import PIL.Image
import pytest

from sprfast.formats import model as model_file
from sprfast.line import sources
from sprfast.method import threshold
from support import ROOT
from support.command_line import one_line
from support.line_cases import PATIENCE, frame
from support.sink_cases import WebServer


@contextlib.contextmanager
def running(*arguments):
    """A process, whose output lines can be read while it runs; it is gone at the end."""
    command = [sys.executable, "-m", "sprfast", "station", *map(str, arguments), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def page_of(process):
    """The page's address and its token, as printed; other lines before it are passed over."""
    url = next(line for line in process.stderr if line.startswith("page: ")).removeprefix("page: ").strip()
    parts = urllib.parse.urlsplit(url)
    return parts.netloc, urllib.parse.parse_qs(parts.query)["token"][0]


def finished(process):
    """Exit code, lines of the output, errors."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.splitlines(), err


@pytest.mark.process
def test_a_station_answers_every_trigger(model_path, pictures):
    frames, share = 120, 0.1
    given = ("--simulate", pictures[0].parent, "--frames", frames, "--faults", share, "--period", "50ms")
    with running(model_path, *given) as process:
        code, lines, errors = finished(process)
    assert (code, lines[0]) == (0, "ready"), errors
    summary = json.loads(lines[-1])
    spoilt = {number for number, fault in sources.simulated_faults(frames, share).items() if fault.spoils}
    rejected = {int(line.split()[1].rstrip(":").split("-")[1].split("@")[0]) for line in lines[1:-1]}
    assert len(spoilt) >= 8
    assert spoilt <= rejected
    assert summary["drained"]
    assert summary["taken"] == summary["PASS"] + summary["REJECT"] + summary["ERROR"] >= frames
    assert len(lines) - 2 == summary["REJECT"] + summary["ERROR"]
    assert summary["errors"]["camera"] >= len(spoilt) / 2


@pytest.mark.process
def test_a_station_scores_by_the_setting_that_is_asked_for(model_path, pictures):
    model = model_file.load(model_path)
    strict = dataclasses.replace(model.scoring_mode, threshold=threshold.manual(1e-9))
    model_file.save(model_path, dataclasses.replace(model, scoring_modes={"strict": strict}))
    given = ("--simulate", pictures[0].parent, "--frames", 8, "--deadline", "10s")
    with running(model_path, *given, "--setting", "strict") as process:
        code, lines, errors = finished(process)
    assert (code, json.loads(lines[-1])["REJECT"]) == (0, 8), errors


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_station_in_order_with_a_page_open(model_path, pictures, number):
    with running(model_path, "--simulate", pictures[0].parent, "--period", "5ms") as process:
        host, token = page_of(process)
        assert process.stdout.readline() == "ready\n"
        viewer = http.client.HTTPConnection(host, timeout=PATIENCE)
        viewer.request("GET", "/events")
        assert viewer.getresponse().readline() == b"event: history\n"
        other = http.client.HTTPConnection(host, timeout=PATIENCE)
        other.request("POST", "/pause", json.dumps({"paused": True}), {"x-station-token": token})
        assert other.getresponse().status == 200
        paused = next(line for line in process.stdout if "paused" in line)
        assert re.fullmatch(r"reject camera-\d+: the station is paused\n", paused)
        process.send_signal(number)
        code, lines, errors = finished(process)
    assert (code, "Traceback" in errors) == (128 + number, False), errors
    summary = json.loads(lines[-1])
    assert summary["drained"]
    assert summary["taken"] == sum(summary[verdict] for verdict in ("PASS", "REJECT", "ERROR"))


@pytest.mark.process
def test_a_missing_camera_is_said_at_once_and_waited_for(model_path):
    with running(model_path, "--camera", "99") as process:
        said = next(line for line in process.stderr if "camera" in line)  # nothing of OpenCV's before it
        assert "camera: no connection (camera 99: cannot be opened; is it there" in said
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        code, lines, _ = finished(process)
    assert code == 143
    assert json.loads(lines[-1])["taken"] == 0


@pytest.mark.process
def test_a_folder_is_watched(model_path, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with running(model_path, "--folder", folder) as process:
        assert process.stdout.readline() == "ready\n"
        (folder / "cut.png").write_bytes(b"\x89PNG")
        assert process.stdout.readline().startswith("reject cut.png: ")
        PIL.Image.fromarray(frame(1)).save(folder / "1.png")
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        _, lines, _ = finished(process)
    assert json.loads(lines[-1])["taken"] == 2


def test_what_cannot_be_run_is_said_in_a_sentence(run, model_path, small_model, pictures, tmp_path):
    simulate = ("--simulate", pictures[0].parent)
    assert "one of --camera, --folder and --simulate" in one_line(run, "station", model_path)
    assert "one of --camera" in one_line(run, "station", model_path, "--camera", "0", *simulate)
    assert "of --simulate" in one_line(run, "station", model_path, "--camera", "0", "--frames", "9")
    assert "share of --frames" in one_line(run, "station", model_path, *simulate, "--faults", "0.1")
    absent = tmp_path / "absent"
    for given in (("--folder", absent), ("--simulate", absent)):
        assert "absent" in one_line(run, "station", model_path, *given)
    (tmp_path / "empty").mkdir()
    assert "empty: holds no images" in one_line(run, "station", model_path, "--simulate", tmp_path / "empty")
    assert "evil.example" in one_line(run, "station", model_path, *simulate, "--host", "evil.example")
    assert "'single'" in one_line(run, "station", model_path, *simulate, "--setting", "single")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = one_line(run, "station", model_path, *simulate, "--port", port)
    assert f"port {port} of 127.0.0.1 (Address already in use)" in said


def test_without_its_libraries_it_says_what_to_install(run, model_path, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    said = one_line(run, "station", model_path, "--simulate", pictures[0].parent, code=3)
    assert "starlette cannot be imported" in said
    assert "pip install 'sprfast[station]'" in said


@pytest.mark.process
def test_every_sink_hears_every_answer(model_path, pictures):
    servers = [WebServer(), WebServer()]
    sinks = [part for server in servers for part in ("--sink", f"http://127.0.0.1:{server.port}/{server.port}")]
    given = ("--simulate", pictures[0].parent, "--frames", 12, "--period", "300ms", *sinks)
    with running(model_path, *given) as process:
        code, lines, errors = finished(process)
    assert code == 0, errors
    summary = json.loads(lines[-1])
    for server in servers:
        heard = [each["verdict"] for each in server.results()]
        assert len(heard) == summary["taken"] == 12
        assert heard.count("REJECT") + heard.count("PASS") <= summary["REJECT"] + summary["PASS"]
        server.close()
    assert errors.count(": connected") == 2


@pytest.mark.process
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_a_log_that_cannot_be_written_on_is_said_and_ends_it_with_2(model_path, pictures, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    given = ("--simulate", pictures[0].parent, "--frames", 25, "--period", "100ms", "--log", path)
    with running(model_path, *given) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        code, lines, errors = finished(process)
    assert code == 2
    assert json.loads(lines[-1])["taken"] == 25
    said = f"{path}: the log of verdicts cannot be written (File too large)"
    assert errors.count(said) == 2  # when it happens, and at the end
    assert re.fullmatch(rf"sprfast: {re.escape(said)}; \d+ records wait in memory", errors.splitlines()[-1])


@pytest.mark.process
def test_a_sink_that_cannot_be_is_refused_without_its_password(model_path, pictures):
    with running(model_path, "--simulate", pictures[0].parent, "--sink", "ftp://me:hunter2@plc") as process:
        code, _, errors = finished(process)
    assert code == 2
    assert errors.splitlines()[-1].startswith("sprfast: sink ftp://***@plc: is of no known kind; expected one of ")
    assert "Traceback" not in errors
    assert "hunter2" not in errors
