"""Cameras and recordings through OpenCV, as far as that goes without a camera."""

import itertools
import socket
import sys

import numpy as np
import pytest

from sprfast.errors import BackendError, CameraError, InputError
from sprfast.line.frames import FrameFormat
from sprfast.line.sources import OpenCvCamera, Stream


@pytest.fixture
def recording(tmp_path):
    """A video of five pictures: blue is 200, red grows by 40."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "recording.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    rows = np.arange(48, dtype=np.uint8)[:, None]
    for index in range(5):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :, 0], image[:, :, 1], image[:, :, 2] = 200, rows, 40 * index
        writer.write(image)
    writer.release()
    return path


def test_a_recording_is_read_to_its_end(recording):
    frames = list(Stream(lambda: OpenCvCamera(str(recording)), FrameFormat(48, 64, "bgr"), "clip"))
    assert [frame.id for frame in frames] == [f"clip-{number}" for number in range(1, 6)]
    for index, frame in enumerate(frames):
        assert (frame.channel_order, frame.fault) == ("bgr", None)
        assert frame.image[:, :, 0].mean() == pytest.approx(200, abs=8)
        assert frame.image[:, :, 2].mean() == pytest.approx(40 * index, abs=8)
    assert [frame.trigger_time for frame in frames] == sorted(frame.trigger_time for frame in frames)


def test_pictures_of_opencv_are_their_own(recording):
    camera = OpenCvCamera(str(recording))
    first, second = camera.grab(1.0), camera.grab(1.0)
    assert not np.shares_memory(first.image, second.image)
    camera.close()
    camera.close()
    with pytest.raises(EOFError):
        camera.grab(1.0)


def test_a_picture_of_a_recording_that_cannot_be_read_is_a_fault_and_no_end(tmp_path):
    """A pattern of images is a recording too, and is shown once."""
    cv2 = pytest.importorskip("cv2")
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"part_{number:02d}.png"), np.arange(600, dtype=np.uint8).reshape(20, 30))
    (tmp_path / "part_03.png").write_bytes(b"no picture")
    pattern = str(tmp_path / "part_%02d.png")
    frames = list(itertools.islice(Stream(lambda: OpenCvCamera(pattern), FrameFormat(20, 30, "bgr"), "clip"), 20))
    assert [frame.id for frame in frames] == [f"clip-{number}" for number in range(1, 7)]
    assert [frame.id for frame in frames if frame.fault] == ["clip-4"]
    assert "a picture of the recording cannot be read" in str(frames[3].fault)


class Scripted:
    """What OpenCV's reader says: pictures, failed reads (False), and errors."""

    def __init__(self, reads, count):
        self.reads, self.count = list(reads), count

    def isOpened(self):  # noqa: N802
        return True

    def set(self, *_):
        return False

    def get(self, _):
        return self.count

    def read(self):
        read = self.reads.pop(0) if self.reads else False
        if isinstance(read, Exception):
            raise read
        return (True, np.arange(18, dtype=np.uint8).reshape(2, 3, 3)) if read else (False, None)

    def release(self):
        pass


@pytest.mark.parametrize(
    ("device", "reads", "count", "found"),
    [
        ("file", [1, 0, 0, 1], 4, "+--+"),
        ("file", [1, 0, 0, 1], -9.2e18, "+--+"),  # which says how many only by going on
        ("file", [1, "error", 1], 3, "+-+"),
        ("file", [1, 0, 1], 5, "+-+--"),
        ("file", [1, *[0] * 9, 1], 0, "+---------+"),
        ("file", [1, *[0] * 10, 1], 0, "+"),
        ("http://camera/clip.mp4", [1, 0, 1], 3, "+-+"),
        ("file", [1, *[0] * 2000], 1e9, "refused"),
    ],
)
def test_the_end_of_a_recording_is_where_it_says_or_where_nothing_more_comes(
    monkeypatch, tmp_path, device, reads, count, found
):
    cv2 = pytest.importorskip("cv2")
    reads = [cv2.error("no") if read == "error" else read for read in reads]
    opened = []

    def capture(*_):
        opened.append(Scripted(reads, count))
        return opened[-1]

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    if device == "file":
        device = tmp_path / "clip.avi"
        device.touch()
    frames = itertools.islice(Stream(lambda: OpenCvCamera(str(device)), FrameFormat(2, 3, "bgr")), 3000)
    if found == "refused":
        with pytest.raises(InputError, match=r"1000 pictures in a row cannot be read, from 2 of 1000000000 on"):
            list(frames)
    else:
        assert "".join("-" if frame.fault else "+" for frame in frames) == found
    assert len(opened) == 1


def test_a_live_camera_that_fails_is_connected_again(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    captures = [Scripted([1, 0], 100), Scripted([1, 1], 100)]
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: captures.pop(0))
    camera = Stream(lambda: OpenCvCamera("rtsp://camera/live"), FrameFormat(2, 3, "bgr"), first_wait=0.001)
    frames = list(itertools.islice(camera, 4))
    assert "".join("-" if frame.fault else "+" for frame in frames) == "+-++"


@pytest.mark.parametrize("device", [97, "/nosuch/recording.avi"])
def test_a_camera_that_is_not_there(device):
    pytest.importorskip("cv2")
    with pytest.raises(CameraError, match=f"camera {device}: cannot be opened"):
        OpenCvCamera(device)


def test_a_silent_address_is_given_up_and_its_password_is_not_told(capfd):
    """Something takes the connection and never says a word; without its limit OpenCV waits for 30
    seconds.
    """
    pytest.importorskip("cv2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CameraError, match="cannot be opened") as raised:
            OpenCvCamera(f"rtsp://operator:hunter2@127.0.0.1:{port}/live?token=s3cr3t&channel=1", timeout=0.3)
    written = "".join(capfd.readouterr()) + str(raised.value)
    assert "Stream timeout triggered" in written  # that it was the limit
    assert f"127.0.0.1:{port}/live" in str(raised.value)
    assert "channel=1" in str(raised.value)
    assert "hunter2" not in written
    assert "s3cr3t" not in written


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"source opencv: OpenCV does not load .*; pip install 'sprfast\[opencv\]'"):
        OpenCvCamera(0)
