"""Sources: whatever befalls a camera or a folder, each trigger becomes one frame with its own
picture or with the reason why not.
"""

import io
import itertools
import logging
import os
import threading
import time

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprfast.errors import CameraError, InputError
from sprfast.line.frames import FrameFormat
from sprfast.line.sources import Fault, FolderWatch, Picture, SimulatedLine, Stream, simulated_faults
from sprfast.line.sources.ids import MOST, Ids
from sprfast.line.sources.retry import Retry

PATIENCE = 60.0  # seconds for what takes milliseconds on a machine that is not busy
PICTURES = [np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8) for seed in range(5)]
FORMAT = FrameFormat(6, 8, "bgr")


def simulated(faults=None, frames=8, **arguments):
    return SimulatedLine(PICTURES, "bgr", frames=frames, faults=faults, **arguments)


def stream(line, frame_format=FORMAT, **arguments):
    return Stream(line.open, frame_format, "cam", **{"first_wait": 0.001, "timeout": PATIENCE, **arguments})


def ids(frames):
    return [frame.id for frame in frames]


def faults(frames):
    """By id."""
    return {frame.id: str(frame.fault) for frame in frames if frame.fault}


class Scripted:
    """A camera that does what it is told, step by step: a picture, None, or an exception."""

    def __init__(self, *steps):
        self.steps, self.closed, self.opened = list(steps), 0, 0

    def open(self):
        self.opened += 1
        return self

    def grab(self, timeout):
        step = self.steps.pop(0) if self.steps else EOFError()
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    def close(self):
        self.closed += 1


def picture(number, trigger_time=0.0, **others):
    return Picture(PICTURES[(number or 0) % len(PICTURES)], number, trigger_time, **others)


def test_every_picture_becomes_a_frame():
    line = simulated()
    before = time.monotonic()
    frames = list(stream(line))
    assert ids(frames) == [f"cam-{number}" for number in range(8)]
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.image, PICTURES[number % 5])
        assert (frame.channel_order, frame.fault) == ("bgr", None)
        assert before <= frame.trigger_time <= time.monotonic()
    assert line.injected == {}


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.STALL, Fault.DISCONNECT])
def test_a_lost_picture_is_one_fault_with_its_id(fault):
    frames = list(stream(simulated({3: fault})))
    assert ids(frames) == [f"cam-{number}" for number in range(8)]
    assert list(faults(frames)) == ["cam-3"]
    expected = (
        "cam: picture 3 was lost with the connection"
        if fault is Fault.DISCONNECT
        else "cam: picture 3 was dropped by the camera"
    )
    assert expected in faults(frames)["cam-3"]
    assert frames[3].image is None
    assert frames[2].trigger_time <= frames[3].trigger_time <= frames[4].trigger_time


def test_a_late_or_repeated_picture_keeps_its_id_so_that_it_is_refused():
    frames = list(stream(simulated({2: Fault.REORDER, 5: Fault.REPEAT})))
    assert ids(frames) == [f"cam-{number}" for number in (0, 1, 2, 3, 2, 4, 5, 5, 6, 7)]
    assert list(faults(frames)) == ["cam-2"]  # the first of the two, which is the one that is answered
    assert frames[2].fault
    assert np.array_equal(frames[4].image, PICTURES[2])


def test_a_picture_that_is_held_back_to_the_end_is_in_order():
    line = simulated({6: Fault.DROP, 7: Fault.REORDER})
    assert ids(stream(line)) == [f"cam-{number}" for number in range(8)]
    assert line.injected == {6: Fault.DROP}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault.PARTIAL, "picture of trigger 3 is not whole"),
        (Fault.FORMAT_CHANGE, r"was declared as uint8 \(6, 8, 3\)"),
        (Fault.BLACK, r"every pixel is \[0 0 0\]"),
        (Fault.NAN, "<f4"),
    ],
)
def test_a_picture_that_cannot_be_used_is_a_fault(fault, message):
    frames = list(stream(simulated({3: fault})))
    assert ids(frames) == [f"cam-{number}" for number in range(8)]
    assert list(faults(frames)) == ["cam-3"]
    with pytest.raises(CameraError, match=message):
        raise frames[3].fault
    assert frames[3].image is None


def test_both_forms_of_a_format_change_occur_and_are_named():
    found = set(
        faults(stream(simulated({3: Fault.FORMAT_CHANGE, 4: Fault.FORMAT_CHANGE, 5: Fault.FORMAT_CHANGE}))).values()
    )
    assert found == {
        f"cam: frame: |u1 of shape {shape}, this camera was declared as uint8 (6, 8, 3)"
        for shape in ((6, 8), (3, 8, 3))
    }


def test_another_channel_order_than_declared_is_a_fault():
    camera = Scripted(picture(0, channel_order="rgb"), picture(1))
    frames = list(stream(camera))
    assert faults(frames) == {"cam-0": "cam: delivered rgb, this camera was declared as bgr"}
    assert frames[1].channel_order == "bgr"


def test_a_raw_buffer_becomes_an_array():
    padded = np.zeros((6, 30), np.uint8)
    padded[:, :24] = PICTURES[0].reshape(6, 24)
    (frame,) = stream(Scripted(Picture(padded.tobytes(), 0, 1.0)), FrameFormat(6, 8, "rgb", row_bytes=30))
    assert np.array_equal(frame.image, PICTURES[0])
    assert (frame.channel_order, frame.trigger_time) == ("rgb", 1.0)


def test_without_a_format_pictures_are_passed_on_as_they_are():
    grey = Picture(PICTURES[1][:, :, 0], 1, 0.0, "grey")
    frames = list(stream(Scripted(picture(0, channel_order="rgb"), grey), None))
    assert [(frame.image.shape, frame.channel_order, frame.fault) for frame in frames] == [
        ((6, 8, 3), "rgb", None),
        ((6, 8), "grey", None),
    ]


@pytest.mark.parametrize("restarts", [False, True])
def test_after_a_reconnection_ids_do_not_repeat_and_the_channel_order_is_the_declared_one(restarts):
    line = simulated({2: Fault.DISCONNECT, 5: Fault.DISCONNECT}, refusals=3, restarts=restarts)
    frames = list(stream(line))
    assert line.connections == 3
    assert len(set(ids(frames))) == len(frames) == 8
    assert [bool(frame.fault) for frame in frames] == [number in (2, 5) for number in range(8)]
    assert {frame.channel_order for frame in frames if not frame.fault} == {"bgr"}
    expected = ["cam-0", "cam-1", "cam-2", "cam-0@2", "cam-1@2", "cam-2@2", "cam-0@3", "cam-1@3"]
    assert ids(frames) == (expected if restarts else [f"cam-{number}" for number in range(8)])


def test_triggers_that_went_by_while_disconnected_are_told_from_the_count():
    camera = Scripted(picture(0), CameraError("gone"), CameraError("gone again"), picture(5))
    frames = list(stream(camera))
    assert ids(frames) == [f"cam-{number}" for number in range(6)]
    assert list(faults(frames)) == ["cam-1", "cam-2", "cam-3", "cam-4"]  # one for the loss, not one for each attempt
    assert (camera.opened, camera.closed) == (3, 3)


def test_a_loss_before_the_first_picture_has_an_id_of_its_own():
    frames = list(stream(Scripted(CameraError("gone"), picture(500), picture(502))))
    assert ids(frames) == ["cam-1@0", "cam-500", "cam-501", "cam-502"]
    assert list(faults(frames)) == ["cam-1@0", "cam-501"]


def test_a_camera_that_does_not_count_gets_our_numbers():
    partial = Picture(None, None, 0.0, fault=CameraError("half"))
    frames = list(stream(Scripted(picture(None), picture(None), partial, CameraError("gone"), picture(None))))
    assert ids(frames) == [f"cam-{number}" for number in range(1, 6)]
    assert list(faults(frames)) == ["cam-3", "cam-4"]


def test_a_broken_picture_without_a_number_takes_the_next_one_of_a_camera_that_counts():
    partial = Picture(None, None, 0.0, fault=CameraError("half"))
    frames = list(stream(Scripted(picture(7), partial, picture(9))))
    assert ids(frames) == ["cam-7", "cam-8", "cam-9"]
    assert faults(frames) == {"cam-8": "half"}


def test_an_error_names_no_password():
    camera = Scripted(picture(1), CameraError("rtsp://admin:hunter2@host/live: gone"))
    assert "hunter2" not in str(faults(stream(camera)))
    with pytest.raises(CameraError) as raised:
        list(stream(Scripted(CameraError("rtsp://admin:hunter2@host/live: gone")), give_up=0.0))
    assert "hunter2" not in str(raised.value)
    assert "host/live" in str(raised.value)


# Ids


def test_missing_pictures_are_named_one_by_one_up_to_a_bound():
    counter = Ids("cam")
    assert counter.missing(0) == []
    assert counter.missing(MOST + 1) == [(f"cam-{number}", f"picture {number}") for number in range(1, MOST + 1)]
    assert counter.missing(2 * MOST + 3) == [(f"cam-{MOST + 2}", f"pictures {MOST + 2} to {2 * MOST + 2}")]
    assert counter.picture(2 * MOST + 3) == f"cam-{2 * MOST + 3}"


def test_16_bits_that_are_used_up_lose_nothing():
    counter = Ids("cam")
    counter.missing(65533)
    assert [id for id, _ in counter.missing(3)] == ["cam-65534", "cam-65535", "cam-1@2", "cam-2@2"]
    assert counter.picture(3) == "cam-3@2"
    assert counter.missing(4) == []


def test_a_count_that_begins_anew_within_a_connection_has_new_ids():
    counter = Ids("cam")
    counter.missing(5000)
    assert counter.missing(5000 - MOST) == []
    assert counter.picture(5000 - MOST) == f"cam-{5000 - MOST}"  # late
    assert counter.missing(0) == []
    assert counter.picture(0) == "cam-0@2"


# Time


def test_with_a_period_every_overdue_trigger_is_a_fault():
    start = time.monotonic()
    camera = Scripted(picture(4, start), *[lambda: time.sleep(0.01)] * 10_000)
    given = stream(camera, period=0.1, timeout=0.02)
    frames = list(itertools.islice(given, 4))
    assert ids(frames) == ["cam-4", "cam-5", "cam-6", "cam-7"]
    assert [round((frame.trigger_time - start) / 0.1, 3) for frame in frames] == [0, 1, 2, 3]
    assert faults(frames)["cam-6"] == "cam: picture 6 was not delivered within 0.02 s"
    assert time.monotonic() >= start + 0.32  # none is called missing before it is


def test_a_picture_that_waits_in_the_camera_is_not_overdue():
    """However long the consumer took: the camera is asked first."""
    start = time.monotonic()
    camera = Scripted(picture(0, start), picture(1, start + 0.01), picture(2, start + 0.02))
    frames = []
    for frame in stream(camera, period=0.01, timeout=0.01):
        frames.append(frame)
        time.sleep(0.05)
    assert (ids(frames), faults(frames)) == (["cam-0", "cam-1", "cam-2"], {})


def test_with_a_period_triggers_without_a_connection_are_faults_and_late_pictures_keep_their_ids():
    start = time.monotonic()
    camera = Scripted(picture(0, start), CameraError("gone"), picture(50, start + 5.0), picture(1, start + 0.1))
    frames = list(stream(camera, period=0.1, first_wait=0.35, timeout=0.1))
    assert ids(frames)[:3] == ["cam-0", "cam-1", "cam-2"]
    assert list(faults(frames))[:2] == ["cam-1", "cam-2"]
    assert ids(frames)[-1] == "cam-1"
    assert len(set(ids(frames))) == len(frames) - 1


def test_a_camera_that_does_not_count_misses_triggers_by_their_time():
    frames = list(
        stream(Scripted(picture(None, 10.0), picture(None, 10.11), picture(None, 10.41)), period=0.1, timeout=1e6)
    )
    assert ids(frames) == [f"cam-{number}" for number in range(1, 6)]
    assert [frame.id for frame in frames if frame.fault] == ["cam-3", "cam-4"]
    assert frames[2].trigger_time == pytest.approx(10.21)


def test_a_stall_without_a_period_is_one_line_in_the_log(caplog):
    start = time.monotonic()
    camera = Scripted(picture(0), *[lambda: time.sleep(0.02)] * 8, picture(1), picture(2))
    with caplog.at_level(logging.INFO, "sprfast.sources"):
        frames = list(stream(camera, timeout=0.03))
    assert (ids(frames), faults(frames)) == (["cam-0", "cam-1", "cam-2"], {})
    assert time.monotonic() - start > 0.03
    assert caplog.messages[0] == "cam: no picture for 0.03 s"
    assert [message.partition(", after")[0] for message in caplog.messages[1:]] == ["cam: pictures come again"]


def test_an_outage_is_logged_once_with_its_end(caplog):
    with caplog.at_level(logging.INFO, "sprfast.sources"):
        list(stream(simulated({2: Fault.DISCONNECT}, refusals=4)))
    assert [message.partition(" (")[0] for message in caplog.messages] == ["cam: no connection", "cam: connected again"]


# Connecting again


def test_waits_double_up_to_the_longest():
    retry = Retry(0.5, 3.0, None)
    error = CameraError("gone")
    assert [retry.failed(error) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    retry.succeeded()
    assert retry.failed(error) == 0.5
    assert [retry.failed(error) for _ in range(2000)][-1] == 3.0


def test_it_gives_up():
    attempts = []

    def refuse():
        attempts.append(time.monotonic())
        raise CameraError("no camera here")

    begun = time.monotonic()
    with pytest.raises(CameraError, match=r"cam: no camera here; given up after"):
        list(Stream(refuse, FORMAT, "cam", first_wait=0.01, give_up=0.2))
    assert time.monotonic() - begun >= 0.2
    assert len(attempts) > 2


def test_a_camera_that_connects_and_fails_at_once_is_given_up_too():
    camera = Scripted(picture(1), *[CameraError("gone")] * 10_000)
    given = iter(stream(camera, give_up=0.1))
    frames = [next(given), next(given)]
    with pytest.raises(CameraError, match="given up"):
        next(given)
    assert ids(frames) == ["cam-1", "cam-2"]
    assert list(faults(frames)) == ["cam-2"]
    assert camera.opened > 2


def test_what_no_attempt_can_mend_ends_the_iteration():
    def broken():
        raise InputError("no such pixel format")

    with pytest.raises(InputError, match="pixel format"):
        list(Stream(broken))


def consume(source):
    """A thread that iterates; the frames, and the thread."""
    frames = []
    thread = threading.Thread(target=lambda: frames.extend(source))
    thread.start()
    return frames, thread


def test_close_ends_a_wait_for_the_next_attempt():
    asked = threading.Event()

    def refuse():
        asked.set()
        raise CameraError("no camera here")

    given = Stream(refuse, first_wait=1000.0, longest_wait=1000.0)
    _, thread = consume(given)
    assert asked.wait(PATIENCE)
    given.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_close_ends_a_wait_for_a_picture_and_lets_the_camera_go():
    asked = threading.Event()

    def nothing():
        asked.set()
        time.sleep(0.01)

    camera = Scripted(*[nothing] * 1_000_000)
    given = stream(camera)
    frames, thread = consume(given)
    assert asked.wait(PATIENCE)
    given.close()
    given.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert (frames, camera.opened, camera.closed) == ([], 1, 1)
    assert list(given) == []


def test_a_consumer_that_stops_lets_the_camera_go():
    camera = Scripted(picture(0), picture(1))
    frames = iter(stream(camera))
    next(frames)
    frames.close()
    assert camera.closed == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0.0},
        {"period": -1.0},
        {"first_wait": 0.0},
        {"first_wait": 2.0, "longest_wait": 1.0},
        {"give_up": -1.0},
    ],
)
def test_arguments_that_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        stream(simulated(), **arguments)


# The simulation


def test_all_kinds_of_faults_through_a_stream():
    """What a soak run relies on: of the triggers whose faults spoil them none is first seen as a
    picture, and all others are.
    """
    planned = simulated_faults(400, 0.2, seed=3)
    assert len(planned) == 80
    assert set(planned.values()) == set(Fault)
    assert planned == simulated_faults(400, 0.2, seed=3) != simulated_faults(400, 0.2, seed=4)
    line = simulated(planned, frames=400, refusals=1)
    check(line, list(stream(line)), 400)
    assert line.injected == planned


def check(line, frames, count):
    """Every trigger has frames, and the first of them says what befell it."""
    first = {}
    for frame in frames:
        first.setdefault(frame.id, frame)
        assert (frame.image is None) == (frame.fault is not None)
    assert first.keys() == {f"cam-{number}" for number in range(count)}
    for number in range(count):
        frame, befell = first[f"cam-{number}"], line.injected.get(number)
        if befell and befell.spoils:
            assert frame.fault, (number, befell)
        else:
            assert np.array_equal(frame.image, PICTURES[number % len(PICTURES)]), (number, befell, frame.fault)
    repeated = len(frames) - len(first)
    assert repeated <= sum(fault in (Fault.REPEAT, Fault.REORDER) for fault in line.injected.values())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([None, *Fault]), max_size=25), st.integers(0, 2))
def test_any_sequence_of_faults_leaves_no_trigger_out_and_lets_no_spoilt_picture_through(sequence, refusals):
    """Only of what comes before the first picture and after the last one nobody can know."""
    planned = {number: fault for number, fault in enumerate(sequence, 1) if fault}
    line = simulated(planned, frames=len(sequence) + 2, refusals=refusals)
    check(line, list(stream(line, first_wait=1e-4, longest_wait=1e-3)), len(sequence) + 2)
    assert line.injected == planned


def test_float_pictures_get_a_nan():
    line = SimulatedLine(
        [np.full((4, 4), 0.5, np.float32) + np.eye(4, dtype=np.float32) / 4], "grey", frames=3, faults={1: Fault.NAN}
    )
    frames = list(stream(line, FrameFormat(4, 4, "grey", "float32")))
    assert [int(np.isnan(frame.image).sum()) for frame in frames] == [0, 1, 0]


def test_real_time():
    line = simulated({2: Fault.STALL, 5: Fault.DISCONNECT}, frames=9, period=0.02, stall=0.07, refusals=1)
    begun = time.monotonic()
    frames = list(stream(line, first_wait=0.05))
    assert time.monotonic() - begun >= 8 * 0.02
    by_id = {frame.id: frame for frame in frames}
    passed = {number for number in range(9) if f"cam-{number}" in by_id and not by_id[f"cam-{number}"].fault}
    assert passed == set(range(9)) - line.injected.keys()
    assert {2, 5} <= line.injected.keys()
    times = [by_id[f"cam-{number}"].trigger_time for number in sorted(passed)]
    steps = np.diff(times) / np.diff(sorted(passed))
    assert steps == pytest.approx([0.02] * len(steps))


@pytest.mark.parametrize(("frames", "rate"), [(10, 0.5), (100, 1.0)])
def test_faults_that_cannot_be_simulated(frames, rate):
    with pytest.raises(InputError, match="frames, rate"):
        simulated_faults(frames, rate)


# Folders


def write(path, seed=0):
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)).save(path)
    return path


def test_new_files_in_the_order_of_their_times(tmp_path):
    write(tmp_path / "old.png")
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    names = ["c.png", "with space.JPG", os.fsdecode(b"caf\xe9.png"), "a.png"]
    for index, name in enumerate(names):
        write(tmp_path / name)
        os.utime(tmp_path / name, ns=(10**18 + index, 10**18 + index))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    begun = time.monotonic()
    frames = list(itertools.islice(watch, 4))
    assert [frame.image for frame in frames] == [tmp_path / name for name in names]
    assert ids(frames) == ["c.png", "with space.JPG", r"caf\xe9.png", "a.png"]
    assert all(begun <= frame.trigger_time <= time.monotonic() for frame in frames)
    assert watch._look() == []


def test_what_lies_there_is_included_where_asked(tmp_path):
    write(tmp_path / "old.png")
    assert ids(itertools.islice(FolderWatch(tmp_path, settle=0.0, existing=True), 1)) == ["old.png"]


def test_a_file_is_seen_when_it_has_not_changed_for_a_while(tmp_path):
    content = write(tmp_path / "source.bmp").read_bytes()
    watch = FolderWatch(tmp_path, settle=0.1)
    with open(tmp_path / "slow.bmp", "wb") as file:
        for chunk in np.array_split(np.frombuffer(content, np.uint8), 4):
            file.write(chunk)
            file.flush()
            assert watch._look() == []  # it has changed since the last look, however long ago that was
            time.sleep(0.15)
    assert watch._look() == ["slow.bmp"]


def test_hundreds_of_files_while_it_watches(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.5)
    buffer = io.BytesIO()
    PIL.Image.fromarray(PICTURES[0]).save(buffer, "PNG")
    content = buffer.getvalue()

    def produce():
        for index in range(300):
            if index % 2:
                (tmp_path / f"{index}.part").write_bytes(content)
                os.rename(tmp_path / f"{index}.part", tmp_path / f"{index}.png")
            else:
                (tmp_path / f"{index}.png").write_bytes(content)

    producer = threading.Thread(target=produce)
    producer.start()
    frames = list(itertools.islice(watch, 300))
    producer.join(PATIENCE)
    assert sorted(ids(frames)) == sorted(f"{index}.png" for index in range(300))
    assert all(np.array_equal(np.asarray(PIL.Image.open(frame.image)), PICTURES[0]) for frame in frames)


def test_a_file_that_changes_is_yielded_again_under_its_name(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    frames = iter(watch)
    write(tmp_path / "latest.png", 1)
    assert next(frames).id == "latest.png"
    assert watch._look() == []
    write(tmp_path / "latest.png", 2)
    os.utime(tmp_path / "latest.png", ns=(1, 1))
    assert next(frames).id == "latest.png"


def test_only_what_lies_there_is_remembered(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    frames = iter(watch)
    for index in range(50):
        path = write(tmp_path / f"{index}.png")
        assert next(frames).id == f"{index}.png"
        path.unlink()
    watch._look()
    assert watch._files == {}


def test_symbolic_links_are_passed_over(tmp_path, caplog):
    secret = write(tmp_path / "secret.png")
    folder = tmp_path / "watched"
    folder.mkdir()
    watch = FolderWatch(folder, poll=0.01, settle=0.0)
    (folder / "link.png").symlink_to(secret)
    write(folder / "part.png")
    assert ids(itertools.islice(watch, 1)) == ["part.png"]
    assert watch._look() == []
    assert caplog.messages == [f"{folder}: link.png is a symbolic link"]


def test_a_folder_that_vanishes_is_waited_for(tmp_path, caplog):
    folder = tmp_path / "share"
    folder.mkdir()
    write(folder / "old.png")
    watch = FolderWatch(folder, poll=0.01, settle=0.0, first_wait=0.01, longest_wait=0.02)
    away = tmp_path / "away"
    folder.rename(away)
    frames, thread = [], None

    def take():
        for frame in watch:
            frames.append(frame)
            watch.close()

    with caplog.at_level(logging.INFO, "sprfast.sources"):
        thread = threading.Thread(target=take)
        thread.start()
        until = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.005)
        write(away / "new.png")
        away.rename(folder)
        thread.join(PATIENCE)
    assert ids(frames) == ["new.png"]  # what it knew, it still knows
    assert caplog.messages == [
        f"{folder}: the folder cannot be read (No such file or directory)",
        f"{folder}: the folder can be read again",
    ]


def test_a_folder_that_stays_away_is_given_up(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    watch = FolderWatch(folder, first_wait=0.01, give_up=0.05)
    folder.rmdir()
    with pytest.raises(CameraError, match=r"share: the folder cannot be read \(No such file or directory\); given up"):
        list(watch)


@pytest.mark.parametrize("name", ["nothing", "file.png", "nul\0"])
def test_a_folder_that_is_not_there(tmp_path, name):
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match="the folder cannot be read"):
        FolderWatch(tmp_path / name)


@pytest.mark.parametrize("arguments", [{"poll": 0.0}, {"settle": -1.0}, {"settle": float("nan")}])
def test_waits_of_a_folder_that_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        FolderWatch(tmp_path, **arguments)


def test_close_ends_a_watch(tmp_path):
    watch = FolderWatch(tmp_path, poll=1000.0)
    _, thread = consume(watch)
    watch.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
