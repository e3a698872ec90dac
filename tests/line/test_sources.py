"""Cameras: each trigger becomes one frame with its own picture or with the reason why not."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprfast.errors import CameraError, InputError
from sprfast.line.frames import FrameFormat
from sprfast.line.sources import Fault, Picture, SimulatedLine, simulated_faults
from sprfast.line.sources.ids import MOST, Ids
from support.source_cases import PICTURES, Scripted, faults, ids, picture, simulated, stream


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


@pytest.mark.clock
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
