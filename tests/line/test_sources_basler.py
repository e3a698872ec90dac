"""Basler cameras, on the emulation that comes with Basler's own package."""

import itertools
import sys
import time

import numpy as np
import PIL.Image
import pytest

from sprfast.errors import BackendError, CameraError, InputError
from sprfast.line.frames import FrameFormat
from sprfast.line.sources import BaslerCamera, Stream

SIZE = {"Width": 64, "Height": 48}
TRIGGER = {"TriggerSelector": "FrameStart", "TriggerMode": "On"}
SERIAL = "0815-0000"  # of the first emulated camera


@pytest.fixture
def emulation(monkeypatch):
    """Says how many cameras are there, one at first."""
    pytest.importorskip("pypylon.pylon", reason="needs pypylon: pip install 'sprfast[basler]'")

    def cameras(count):
        monkeypatch.setenv("PYLON_CAMEMU", str(count))

    cameras(1)
    return cameras


@pytest.fixture
def opened(emulation):
    """Opens cameras, and lets them go at the end."""
    cameras = []

    def opened(features=SIZE, device=None):
        cameras.append(BaslerCamera(device, features))
        return cameras[-1]

    yield opened
    for camera in cameras:
        camera.close()


def grabbed(camera):
    picture = camera.grab(5.0)
    assert picture.fault is None
    return picture


@pytest.mark.parametrize(
    ("pixel_format", "order", "dtype", "shape"),
    [
        ("Mono8", "grey", np.uint8, (48, 64)),
        ("Mono10", "grey", np.uint16, (48, 64)),
        ("Mono12", "grey", np.uint16, (48, 64)),
        ("Mono16", "grey", np.uint16, (48, 64)),
        ("RGB8Packed", "rgb", np.uint8, (48, 64, 3)),
        ("BGR8Packed", "bgr", np.uint8, (48, 64, 3)),
        ("BayerRG8", "rgb", np.uint8, (48, 64, 3)),
        ("BayerBG8", "rgb", np.uint8, (48, 64, 3)),
    ],
)
def test_pictures_of_every_pixel_format(opened, pixel_format, order, dtype, shape):
    camera = opened({"PixelFormat": pixel_format, **SIZE})
    before = time.monotonic()
    first, second = grabbed(camera), grabbed(camera)
    assert (first.image.dtype, first.image.shape, first.channel_order) == (dtype, shape, order)
    assert (first.number, second.number) == (0, 1)
    assert before < first.trigger_time < second.trigger_time < time.monotonic()
    assert not np.shares_memory(first.image, second.image)
    levels = {"Mono10": 1023, "Mono12": 4095}.get(pixel_format, np.iinfo(dtype).max)
    assert levels / 16 < np.ptp(first.image) <= levels


@pytest.mark.parametrize("pixel_format", ["BayerRG8", "BayerGR8", "BayerGB8", "BayerBG8", "RGB8Packed", "BGR8Packed"])
def test_colours_are_those_before_the_camera(opened, tmp_path, pixel_format):
    """Which the emulation takes from a file."""
    PIL.Image.new("RGB", (64, 48), (200, 30, 90)).save(tmp_path / "scene.png")
    scene = {"ImageFilename": tmp_path / "scene.png", "ImageFileMode": "On", "TestImageSelector": "Off"}
    picture = grabbed(opened({"PixelFormat": pixel_format, **SIZE, **scene}))
    rgb = picture.image[..., ::-1] if picture.channel_order == "bgr" else picture.image
    assert np.abs(rgb[4:-4, 4:-4].astype(int) - (200, 30, 90)).max() <= 1


def test_a_stream_delivers_each_picture_once(opened):
    frames = list(itertools.islice(Stream(opened, FrameFormat(48, 64, "grey"), "cam"), 20))
    assert [frame.id for frame in frames] == [f"cam-{number}" for number in range(20)]
    assert not any(frame.fault for frame in frames)


def test_a_trigger_is_a_picture(opened):
    camera = opened({**TRIGGER, "TriggerSource": "Software", **SIZE})
    assert camera.grab(0.1) is None
    for number in range(3):
        camera._camera.ExecuteSoftwareTrigger()
        assert grabbed(camera).number == number
        assert camera.grab(0.05) is None


def test_no_picture_comes_without_its_trigger(opened, caplog):
    """A line's signal, which the emulation never has: the camera is there, and the line stands."""
    source = Stream(lambda: opened({**TRIGGER, "TriggerSource": "Line1", **SIZE}), name="cam", timeout=0.2)
    given = iter(source)
    closing = time.monotonic() + 0.6
    source._retry.closed = lambda: time.monotonic() > closing
    assert list(given) == []
    assert [record.getMessage() for record in caplog.records] == ["cam: no picture for 0.2 s"]


def test_a_picture_that_is_not_whole_is_a_fault_of_its_trigger(opened):
    camera = opened({"ForceFailedBufferCount": 2, **SIZE})
    given = iter(Stream(lambda: camera, FrameFormat(48, 64, "grey"), "cam"))
    first = [next(given) for _ in range(2)]
    camera._camera.ForceFailedBuffer.Execute()
    frames = first + [next(given) for _ in range(30)]
    assert [frame.id for frame in frames] == [f"cam-{number}" for number in range(32)]
    failed = [frame for frame in frames if frame.fault]
    assert len(failed) == 2
    for frame in failed:
        assert frame.image is None
        assert "the picture is not whole (The buffer was incompletely grabbed.)" in str(frame.fault)


def test_a_camera_that_disappears_is_connected_again(emulation, opened, caplog):
    caplog.set_level("INFO")
    cameras = []

    def connect():
        cameras.append(opened())
        return cameras[-1]

    given = iter(Stream(connect, FrameFormat(48, 64, "grey"), "cam", first_wait=0.01, longest_wait=0.05))
    assert [next(given).id for _ in range(3)] == ["cam-0", "cam-1", "cam-2"]
    emulation(0)
    cameras[0]._camera.DestroyDevice()
    lost = next(given)
    assert lost.id == "cam-3"
    assert "the connection is lost, the camera is gone" in str(lost.fault)
    with pytest.raises(CameraError, match=r"camera 0: cannot be opened, it is not there; .*: none"):
        opened()
    emulation(1)
    assert [(frame.id, frame.fault) for frame in itertools.islice(given, 2)] == [("cam-0@2", None), ("cam-1@2", None)]
    assert "cam: connected again" in caplog.text


@pytest.mark.parametrize(
    ("count", "device", "features", "error", "message"),
    [
        (0, None, {}, CameraError, "camera 0: cannot be opened, it is not there; cameras by serial number: none"),
        (2, None, {}, InputError, "2 cameras: name one by its serial number, 0815-0000 or 0815-0001"),
        (1, "C3", {}, CameraError, f"camera C3: cannot be opened, it is not there; cameras by serial number: {SERIAL}"),
        (1, 1, {}, CameraError, "camera 1: cannot be opened, it is not there"),
        (1, None, {"PixelFormat": "BayerRG12"}, InputError, "BayerRG12 is not supported; .* one of Mono8, .*BayerRG8"),
        (1, None, {"Width": 10**6}, InputError, "camera 0: feature Width does not take 1000000 "),
        (1, None, {"NoSuchThing": 1}, InputError, "camera 0: feature NoSuchThing does not take 1 "),
    ],
)
def test_what_cannot_be_connected_is_let_go(emulation, opened, count, device, features, error, message):
    emulation(count)
    with pytest.raises(error, match=message) as raised:
        BaslerCamera(device, features)
    assert "\n" not in str(raised.value)
    emulation(1)
    grabbed(opened())


def test_a_camera_is_named_by_its_serial_number_or_its_place(emulation, opened):
    emulation(2)
    for device in ("0815-0001", 1):
        camera = opened(device=device)
        assert camera._camera.GetDeviceInfo().GetSerialNumber() == "0815-0001"
        camera.close()
        camera.close()
        with pytest.raises(CameraError, match=f"camera {device}: the connection is lost"):
            camera.grab(0.1)


def test_without_pypylon(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypylon", None)
    monkeypatch.setitem(sys.modules, "pypylon.pylon", None)
    with pytest.raises(BackendError, match=r"pypylon.pylon cannot be imported .*: pip install 'sprfast\[basler\]'"):
        BaslerCamera()
