"""The live station: its page over real HTTP, its buttons, and what it keeps."""

import dataclasses
import io
import json
import socket
import time
import urllib.parse

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.engine.load import load
from sprfast.errors import CameraError, InputError
from sprfast.formats import model as model_file
from sprfast.line import sources
from sprfast.line.sinks.log import LogSink
from sprfast.line.station import history, pictures
from sprfast.line.station.access import Access
from sprfast.line.station.feed import WAITING as EVENTS_WAITING
from sprfast.line.station.history import History, Seen, Shown
from sprfast.line.station.marked import MarkedGood
from sprfast.line.station.server import Server
from support.line_cases import eventually, frame
from support.station_cases import Heard, serving


@pytest.fixture
def station(model_path):
    with serving(model_path) as served:
        yield served


def test_a_page_with_its_events_and_pictures(station):
    station.answered("1", "2", "3")
    status, page = station.ask("GET", "/")
    assert (status, page[:15]) == (200, b"<!doctype html>")
    assert b"//" not in page.replace(b"://", b"")  # nothing from elsewhere, and no comment
    with station.events() as events:
        (kind, past), (_, state) = next(events), next(events)
        assert (kind, [each["id"] for each in past]) == ("history", ["1", "2", "3"])
        station.answered("4")
        new = next(data for kind, data in events if kind == "answers")
    (answer,) = new
    heard = station.heard.answers[-1]
    assert (answer["id"], answer["verdict"], answer["score"]) == ("4", heard.verdict, heard.result.pred_score)
    assert answer["ratio"] == pytest.approx(heard.result.pred_score / 0.023)
    counts = state["counts"]
    assert (counts["taken"], counts["PASS"] + counts["REJECT"], counts["ERROR"]) == (3, 3, 0)
    assert state["state"] == "OK"
    assert 0 < state["latency"]["p50_ms"] <= state["latency"]["p99_ms"]
    assert "threshold does not come from a calibration" in state["drift_reason"]
    for query in ("", "?heat=0", "?side=160"):
        status, content = station.ask("GET", f"/picture/{state['picture']}{query}")
        assert status == 200
        assert PIL.Image.open(io.BytesIO(content)).size == (32, 32)
    assert station.ask("GET", f"/picture/{state['picture']}?side=4000")[0] == 400
    assert station.ask("GET", "/picture/4711")[0] == 404


@pytest.mark.clock
def test_a_reject_is_seen_within_half_a_second(station):
    rejects, seen = 0, []
    with station.events() as events:
        for number in map(str, range(40)):
            begun = time.monotonic()
            station.source.push(number, frame(int(number)))
            data = next(data for kind, data in events if kind == "answers")
            if data[0]["verdict"] == "REJECT":
                rejects += 1
                seen.append(time.monotonic() - begun)
    assert rejects >= 5
    assert max(seen) < 0.5


def test_buttons_are_refused_without_the_token_and_from_other_sites(station):
    host = urllib.parse.urlsplit(station.server.address).netloc
    token = station.server.access.token
    for given in ({}, {"x_station_token": "wrong"}, {"x_station_token": token[:-1]}):
        status, content = station.ask("POST", "/pause", {"paused": True}, **given)
        assert (status, "token" in json.loads(content)["error"]) == (403, True)
    assert station.ask("POST", f"/pause?token={token}", {"paused": True})[0] == 403  # which a link could hold
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        status, _ = station.ask("POST", "/pause", {"paused": True}, x_station_token=token, **headers)
        assert status == 403, headers
    assert station.ask("GET", "/", host="evil.example")[0] == 403
    assert not station.station.paused
    given = {"x_station_token": token, "origin": f"http://{host}"}
    assert station.ask("POST", "/pause", {"paused": True}, **given)[0] == 200
    assert station.station.paused


def test_beyond_this_machine_everything_needs_the_token(model_path):
    with serving(model_path, host="0.0.0.0") as station:
        paths = ("/", "/events", "/picture/1")
        assert [station.ask("GET", path)[0] for path in paths] == [403] * 3
        assert station.ask("GET", f"/?token={station.server.access.token}")[0] == 200


@pytest.mark.parametrize(
    ("bound", "asked", "own"),
    [
        *(("127.0.0.1", name, True) for name in ("127.0.0.1:80", "localhost", "LOCALHOST:9", "[::1]:80")),
        *(("127.0.0.1", name, False) for name in ("", "evil.example:80", "192.168.0.7:80", "127.0.0.1.evil.example")),
        *(("192.168.0.7", name, True) for name in ("192.168.0.7:80", "10.0.0.1", "localhost:80", "[fe80::1]:80")),
        *(("192.168.0.7", name, False) for name in ("evil.example", "192.168.0.7.evil.example:80")),
    ],
)
def test_names_under_which_the_page_is_its_own(bound, asked, own):
    access = Access(bound)
    assert (access.refusal({"host": asked}, access.token, True) == "") is own


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/pause", {}, "paused"),
        ("/pause", {"paused": 1}, "int is not allowed"),
        ("/mark", {"number": "1", "good": True}, "str is not allowed"),
        ("/mark", {"number": 9, "good": True}, "not kept any more"),
        ("/mark", {"number": 9, "good": False}, "not marked"),
        ("/recalibrate", {}, "no picture is marked"),
        ("/swap", {"model": "../" * 9 + "etc/passwd"}, "leads out of"),
        ("/swap", {"model": "nothing.safetensors"}, "nothing.safetensors"),
    ],
)
def test_a_button_that_cannot_do_it_says_why(station, path, body, said):
    status, sentence = station.act(path, **body)
    assert (status, said in sentence, "\n" in sentence) == (400, True, False), sentence


def test_a_request_that_is_no_request(station):
    token = station.server.access.token
    assert station.ask("POST", "/mark", [1], x_station_token=token)[0] == 400
    assert station.ask("POST", "/mark", "x" * 10_000, x_station_token=token)[0] == 400
    assert station.ask("GET", "/pause")[0] == 405


def test_while_paused_every_part_is_an_error(station):
    assert station.act("/pause", paused=True) == (200, "paused: every part is answered with ERROR")
    station.answered("1")
    answer = station.heard.answers[-1]
    assert (answer.verdict, answer.result.reason) == ("ERROR", "the station is paused")
    assert station.state()["paused"]
    station.act("/pause", paused=False)
    station.answered("2")
    assert station.heard.answers[-1].verdict != "ERROR"


def test_marked_pictures_give_a_new_threshold(station, model_path):
    for number in range(12):  # one by one, since only some of the last pictures are kept
        station.answered(str(number))
        status, _ = station.act("/mark", number=station.state()["picture"], good=True)
        assert status == 200
    scores = [answer.result.pred_score for answer in station.heard.answers]
    kept = sorted(station.station.marked.folder.iterdir())
    assert len(kept) == 12
    assert any(np.array_equal(np.asarray(PIL.Image.open(path)), frame(3)) for path in kept)
    assert station.act("/mark", number=12, good=False)[0] == 200
    assert station.state()["marked"] == 11
    status, said = station.act("/recalibrate")
    above = sum(score > 0.023 for score in scores[:11])
    assert status == 200
    assert f"from 11 marked pictures of which {above} were above the old one" in said
    threshold = station.station.predictor.threshold
    assert threshold == model_file.load(model_path).scoring_mode.threshold
    assert threshold.value == pytest.approx(sorted(scores[:11])[threshold.rank - 1], rel=1e-3)
    station.answered("20")
    assert station.heard.answers[-1].result.threshold == threshold.value
    assert station.station.line.health().swaps == 1


def test_too_few_marked_pictures_change_nothing(station, model_path):
    before = model_path.read_bytes()
    station.answered("1")
    station.act("/mark", number=station.state()["picture"], good=True)
    status, said = station.act("/recalibrate")
    assert (status, "needs scores of at least 4 good images, got 1" in said) == (400, True)
    assert model_path.read_bytes() == before
    assert station.station.line.health().swaps == 0


def test_a_bad_model_file_keeps_the_old_one(station, small_model, model_path):
    old = station.state()["model"]
    (model_path.parent / "bad.safetensors").write_bytes(b"not a model")
    model_file.save(
        model_path.parent / "raw.safetensors",
        dataclasses.replace(small_model, scoring_mode=dataclasses.replace(small_model.scoring_mode, threshold=None)),
    )
    for name, reason in (("bad.safetensors", "bad.safetensors"), ("raw.safetensors", "sprfast calibrate")):
        status, said = station.act("/swap", model=name)
        assert (status, reason in said) == (400, True), said
        assert said.endswith("; the old model goes on")
    assert station.state()["model"] == old
    louder = {name: value * 1.1 for name, value in small_model.weights.items()}
    other = dataclasses.replace(small_model, weights=louder)
    model_file.save(model_path.parent / "other.safetensors", other)
    assert station.act("/swap", model="other.safetensors") == (200, "other.safetensors serves now")
    state = station.state()
    assert (state["model"]["sha256"], state["model"]["file"]) == (other.sha256, "other.safetensors")
    assert state["models"] == ["bad.safetensors", "model.safetensors", "other.safetensors", "raw.safetensors"]


def test_a_model_that_comes_in_is_in_the_log_of_verdicts_with_its_promise(small_model, model_path, tmp_path):
    path = tmp_path / "verdicts.jsonl"
    other = dataclasses.replace(small_model, weights={key: value * 1.1 for key, value in small_model.weights.items()})
    model_file.save(model_path.parent / "other.safetensors", other)
    log = LogSink(path, load(model_path))
    with serving(model_path, listeners=[log], swapped=log.swap) as station:
        station.answered("1")
        assert station.act("/swap", model="other.safetensors")[0] == 200
        station.answered("2")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record.get("event") or record["id"] for record in records] == ["model", "1", "model", "2"]
    assert {record["model_sha256"] for record in records[:2]} == {small_model.sha256}
    assert {record["model_sha256"] for record in records[2:]} == {other.sha256}
    assert records[2]["threshold"]["value"] == 0.023


def test_a_missing_camera_is_in_the_page_until_it_is_there(model_path):
    there = []

    def opened():
        if not there:
            raise CameraError("camera 0: cannot be opened")
        return sources.SimulatedLine([frame(1), frame(2)], "rgb", frames=4).open()

    stream = sources.Stream(opened, first_wait=0.01, longest_wait=0.01)
    with serving(model_path, stream) as station:
        with station.events() as events:
            faults = next(data["faults"] for kind, data in events if kind == "state" and data["faults"])
            assert faults == ["camera: no connection (camera 0: cannot be opened)"]
            there.append(True)
            assert next(data for kind, data in events if kind == "answers")
            assert next(data for kind, data in events if kind == "state" and data["counts"]["taken"] == 4)
        assert station.state()["faults"] == []


def test_a_folder_that_is_gone_is_a_fault_until_it_is_back(model_path, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    watch = sources.FolderWatch(folder, poll=0.01, settle=0.0, first_wait=0.01, longest_wait=0.01)
    with serving(model_path, watch) as station:
        folder.rename(tmp_path / "away")
        assert eventually(lambda: "in: the folder cannot be read" in " ".join(station.station.faults()))
        (tmp_path / "away").rename(folder)
        assert eventually(lambda: station.station.faults() == [])
        PIL.Image.fromarray(frame(1)).save(folder / "1.png")
        assert eventually(lambda: station.heard.answers)
        state = station.state()
        assert station.ask("GET", f"/picture/{state['picture']}")[0] == 200
        station.act("/mark", number=state["picture"], good=True)
        (kept,) = station.station.marked.folder.iterdir()
        assert kept.read_bytes() == (folder / "1.png").read_bytes()


def test_listeners_hear_each_answer_whatever_another_does(model_path):
    class Failing(Heard):
        def deliver(self, answer):
            raise OSError("no")

    first = Failing()
    with serving(model_path, listeners=[first]) as station:
        first.said = "modbus: no connection"
        station.answered("1", "2")
        assert station.state()["faults"] == ["modbus: no connection"]
        assert [answer.id for answer in station.heard.answers] == ["1", "2"]
        assert len(station.station.history.since(0)) == 2
    assert first.closed
    assert station.heard.closed


def test_a_viewer_that_does_not_read_holds_nobody_up(station):
    feed = station.server._page.feed
    where = urllib.parse.urlsplit(station.server.address)
    with socket.create_connection(("127.0.0.1", where.port)) as idle, station.events() as events:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{where.port}\r\n\r\n".encode())
        assert eventually(lambda: len(feed._viewers) == 2)
        for _ in range(5000):  # more than the buffers of a connection hold
            station.server._page.feed._tell(b"event: state\ndata: " + b'"' + b"x" * 5000 + b'"\n\n')
        station.answered("1")
        assert next(data for kind, data in events if kind == "answers")
        assert max(map(len, feed._viewers.values())) <= EVENTS_WAITING
    assert eventually(lambda: not feed._viewers)


def test_pictures_of_refused_frames_are_let_go(station):
    for _ in range(300):
        station.source.push("0", frame(0))
    station.answered(*map(str, range(1, 140)))
    assert station.station.line.health().refused > 100
    assert eventually(lambda: not station.station._frames)


def seen(number, verdict="REJECT"):
    return Seen(number, str(number), verdict, 1.0, 1.0, 0.0, 0.0, None, True)


def test_kept_pictures_are_bounded_in_bytes(station, monkeypatch):
    monkeypatch.setattr(history, "PICTURE_BYTES", 2 * 3 * 300_000)
    for number in map(str, range(20)):
        station.answered(number)
    rejects = station.station.history._rejects
    assert 1 <= len(rejects) <= 3
    assert History().look() is None


@pytest.mark.parametrize(
    ("image", "order", "expected"),
    [
        (np.full((8, 9, 3), [10, 20, 30], np.uint8), "bgr", [30, 20, 10]),
        (np.full((8, 9), 77, np.uint8), "grey", [77, 77, 77]),
        (np.full((8, 9, 1), 77, np.uint8), "grey", [77, 77, 77]),
        (np.full((8, 9), 4095, np.uint16), "grey", [255, 255, 255]),
        (np.full((8, 9, 3), 0.5, np.float32), "rgb", [128, 128, 128]),
        (np.full((8, 9, 3), np.nan, np.float32), "rgb", [0, 0, 0]),
    ],
)
def test_a_picture_of_any_form_is_shown(image, order, expected):
    shown = Shown(seen(1), image, order, None, None)
    content = pictures.jpeg(shown, 160, True, Preprocessing(bit_depth=12))
    pixels = np.asarray(PIL.Image.open(io.BytesIO(content)))
    assert pixels.shape == (8, 9, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_a_large_picture_is_shown_small():
    shown = Shown(seen(1), np.zeros((3000, 4000, 3), np.uint8), "rgb", np.ones((256, 256), np.float32), 0.5)
    content = pictures.jpeg(shown, 640, True, Preprocessing())
    assert PIL.Image.open(io.BytesIO(content)).size == (640, 480)


def test_marked_pictures_are_kept_as_they_were(tmp_path):
    marked = MarkedGood(tmp_path / "good")
    assert marked.names() == set()
    bgr = frame(1)[..., ::-1]
    deep = (frame(2)[..., 0].astype(np.uint16) << 4) + 3
    names = [marked.add(bgr, "bgr"), marked.add(deep, "grey"), marked.add(frame(1), "rgb")]
    assert names[0] == names[2]  # the same pixels
    read = [np.asarray(PIL.Image.open(tmp_path / "good" / name)) for name in names]
    assert np.array_equal(read[0], frame(1))
    assert np.array_equal(read[1], deep)
    for image in (np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), np.float32)):
        with pytest.raises(InputError, match="cannot be kept"):
            marked.add(image, "rgb")
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        marked.add(tmp_path / "gone.png", None)
    assert len(marked.names()) == 2


def test_a_page_whose_address_cannot_be_bound(station):
    port = urllib.parse.urlsplit(station.server.address).port
    with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 .*in use"):
        Server(station.station, "127.0.0.1", port)
    with pytest.raises(InputError, match="expected an address of this machine"):
        Server(station.station, "evil.example")


def test_too_many_pages_are_refused(station, monkeypatch):
    monkeypatch.setattr("sprfast.line.station.feed.VIEWERS", 1)
    with station.events() as events:
        next(events)
        assert station.ask("GET", "/events") == (503, b"1 pages are open; close one")
