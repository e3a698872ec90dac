"""Cameras: overdue triggers, stalls, and connecting again."""

import itertools
import logging
import threading
import time

import pytest

from sprfast.errors import CameraError, InputError
from sprfast.line.sources import Fault, Stream
from sprfast.line.sources.retry import Retry
from support.source_cases import FORMAT, PATIENCE, Scripted, consume, faults, ids, picture, simulated, stream


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
    retry.failures = 0
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


def test_a_simulated_camera_is_triggered_at_whole_multiples_of_its_period():
    """So that a controller with the same clock knows of each part."""
    camera = simulated(frames=3, period=0.03).open()
    taken = [camera.grab(PATIENCE) for _ in range(3)]
    periods = [picture.trigger_time / 0.03 for picture in taken]
    assert periods == pytest.approx([round(periods[0]) + number for number in range(3)], abs=1e-6)
    assert time.monotonic() >= taken[-1].trigger_time
