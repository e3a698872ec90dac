"""Adapters for cameras: GenICam buffers, as far as that goes without a camera."""

import inspect
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from sprfast.errors import BackendError, CameraError, InputError
from sprfast.line.frames import FrameFormat
from sprfast.line.sources import HarvestersCamera, Stream
from sprfast.line.sources.buffers import PIXEL_FORMATS, pixels

# Buffers of GenICam cameras


def buffer_of(image, padding, offset=0, after=0):
    """The bytes of an image as a camera sends them, with rubbish wherever there is no picture."""
    rows = image.reshape(image.shape[0], -1).view(np.uint8)
    padded = np.concatenate([rows, np.full((len(rows), padding), 0xEE, np.uint8)], axis=1)
    return b"\xdd" * offset + padded.tobytes() + b"\xcc" * after


@pytest.mark.parametrize("padding", [0, 3, 8])
@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_every_pixel_format_with_padding(name, padding):
    order, dtype = PIXEL_FORMATS[name]
    shape = (5, 7) if order == "grey" else (5, 7, 3)
    image = np.random.default_rng(0).integers(0, 1024 if dtype == "uint16" else 256, shape).astype(dtype)
    data = bytearray(buffer_of(image, padding, offset=16, after=10))
    taken, taken_order = pixels(data, name, 5, 7, padding, 16)
    data[:] = bytes(len(data))  # the camera writes the next picture
    assert np.array_equal(taken, image)
    assert (taken.dtype, taken_order, taken.flags.c_contiguous) == (np.dtype(dtype), order, True)


def test_the_padding_of_the_last_row_may_be_missing():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = buffer_of(image, 4)
    assert np.array_equal(pixels(data[:-4], "Mono8", 3, 4, 4)[0], image)
    with pytest.raises(CameraError, match=r"not whole: 19 bytes for 3 x 4 pixels \(height x width\) of Mono8"):
        pixels(data[:-5], "Mono8", 3, 4, 4)


@pytest.mark.parametrize("name", ["BayerRG8", "Mono12Packed", "Mono10p", "YUV422_8", "RGB8Packed", "0x81234567"])
def test_other_pixel_formats_are_refused_with_what_to_set(name):
    with pytest.raises(
        InputError, match=f"pixel format {name} is not supported; set the camera's PixelFormat to one of Mono8, .*BGR8"
    ):
        pixels(bytes(100), name, 2, 2)


# The connection, to a package that has the names of harvesters 1.4.3 and a camera made up of numpy
# arrays


class GenTlError(Exception):
    pass


class Queue:
    def __init__(self):
        self.queued = []

    def queue_buffer(self, buffer):
        self.queued.append(buffer)


class Buffer:
    """Of a producer that does not know its offset or the rows delivered, as some do not."""

    payload_type, padding_x = 1, 2

    def __init__(self, queue, number, image, rows=None, code=0x01080001):
        self.parent, self.frame_id, self.pixel_format = queue, number, code
        self.height, self.width = image.shape[:2]
        self.raw_buffer = buffer_of(image[:rows], 2)

    def __getattr__(self, name):
        raise GenTlError(f"{name} is not available")


class Acquirer:
    Events = types.SimpleNamespace(INCOMPLETE_BUFFER=4)

    def __init__(self, package):
        self.package, self.destroyed, self.started = package, False, False
        self.data_streams = [object()]
        pixel_format = types.SimpleNamespace(value=package.pixel_format, get_int_value=lambda: 0x01080001)
        self.remote_device = types.SimpleNamespace(node_map=types.SimpleNamespace(PixelFormat=pixel_format))
        signal.signal(signal.SIGINT, lambda *_: None)  # as the package does

    def add_callback(self, event, callback):
        assert (event, isinstance(callback, self.package.Callback)) == (4, True)
        self.callback = callback

    def start(self):
        self.started = True

    def try_fetch(self, *, timeout, is_raw):
        assert (timeout > 0, is_raw, self.started) == (True, True, True)
        step = self.package.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if step == "incomplete":
            self.callback.emit(context=self)
            return None
        return step

    def destroy(self):
        self.destroyed = True


class Harvester:
    def __init__(self, package):
        self.package, self.device_info_list = package, []

    def add_file(self, path, check_validity):
        if not Path(path).read_bytes():
            raise OSError("file too short")

    def update(self):
        self.device_info_list = [
            types.SimpleNamespace(property_dict={"serial_number": serial}) for serial in self.package.serials
        ]

    def create(self, key):
        if isinstance(key, dict) and key["serial_number"] not in self.package.serials:
            raise ValueError("no device found")
        self.package.acquirers.append(Acquirer(self.package))
        return self.package.acquirers[-1]

    def reset(self):
        self.device_info_list = []


class Package:
    """What `harvesters.core` is to the adapter."""

    class Callback:
        pass

    def __init__(self):
        self.steps, self.serials, self.pixel_format, self.acquirers = [], ["A1", "B2"], "Mono8", []
        self.Harvester = lambda: Harvester(self)


@pytest.fixture
def package(monkeypatch):
    package = Package()
    types_of = types.SimpleNamespace(PAYLOAD_TYPE_IMAGE=1, PAYLOAD_TYPE_CHUNK_DATA=4)
    modules = {
        "harvesters.core": package,
        "harvesters.util.pfnc": types.SimpleNamespace(dict_by_ints={0x01080001: "Mono8", 0x01080009: "BayerRG8"}),
        "genicam.gentl": types.SimpleNamespace(GenericException=GenTlError, PAYLOADTYPE_INFO_IDS=types_of),
        "genicam.genapi": types.SimpleNamespace(GenericException=GenTlError),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    return package


@pytest.fixture
def cti(tmp_path):
    path = tmp_path / "producer.cti"
    path.write_bytes(b"x")
    return path


def test_buffers_become_frames_and_go_back_to_the_camera(package, cti):
    queue, image = Queue(), np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)
    buffers = [Buffer(queue, 7, image), Buffer(queue, 9, image, rows=2), Buffer(queue, 11, image, code=0x01080009)]
    compressed = Buffer(queue, 12, image)
    compressed.payload_type = 6
    package.steps = [buffers[0], None, "incomplete", *buffers[1:], compressed, GenTlError("unplugged")]
    before = signal.getsignal(signal.SIGINT)
    given = iter(Stream(lambda: HarvestersCamera(cti, "A1"), FrameFormat(4, 6, "grey"), "cam"))
    frames = [next(given) for _ in range(7)]
    given.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert [frame.id for frame in frames] == ["cam-7", "cam-8", "cam-9", "cam-10", "cam-11", "cam-12", "cam-13"]
    assert np.array_equal(frames[0].image, image)
    assert frames[0].channel_order == "grey"
    expected = [
        "data was lost on its way",
        "not whole: 16 bytes for 4 x 6",
        "was dropped",
        "BayerRG8 is not supported",
        "no plain image",
    ]
    for frame, message in zip(frames[1:], [*expected, "unplugged"], strict=True):
        assert message in str(frame.fault)
    assert queue.queued == [*buffers, compressed]
    assert [acquirer.destroyed for acquirer in package.acquirers] == [True]


def test_fewer_rows_than_declared_are_not_a_picture(package, cti):
    """What lies in the rest of the buffer is an older picture."""
    buffer = Buffer(Queue(), 0, np.zeros((4, 6), np.uint8))
    buffer.delivered_image_height = 3
    package.steps = [buffer]
    assert "it has 3 of 4 rows" in str(HarvestersCamera(cti, 1).grab(0.0).fault)


@pytest.mark.parametrize(
    ("change", "device", "error", "message"),
    [
        ({"pixel_format": "BayerRG8"}, "A1", InputError, "set the camera's PixelFormat to one of Mono8"),
        ({}, None, InputError, "2 cameras: name one by its serial number, A1 or B2"),
        ({}, "C3", CameraError, "camera C3: cannot be opened (no device found); cameras by serial number: A1, B2"),
    ],
)
def test_what_cannot_be_connected_is_let_go(package, cti, change, device, error, message):
    vars(package).update(change)
    with pytest.raises(error) as raised:
        HarvestersCamera(cti, device)
    assert message in str(raised.value)
    assert all(acquirer.destroyed for acquirer in package.acquirers)


def test_the_only_camera_needs_no_name(package, cti):
    package.serials = ["A1"]
    HarvestersCamera(cti).close()
    assert package.acquirers[0].destroyed


def test_a_producer_that_is_missing_or_does_not_load(package, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.cti: no such file; name the \.cti file"):
        HarvestersCamera(tmp_path / "nothing.cti")
    (tmp_path / "empty.cti").touch()
    with pytest.raises(BackendError, match=r"empty\.cti: is no GenTL producer that loads here \(file too short\)"):
        HarvestersCamera(tmp_path / "empty.cti")


def test_without_harvesters(monkeypatch):
    monkeypatch.setitem(sys.modules, "harvesters", None)
    monkeypatch.setitem(sys.modules, "harvesters.core", None)
    with pytest.raises(
        BackendError, match=r"source harvesters: it does not load .*; pip install 'sprfast\[harvesters\]'"
    ):
        HarvestersCamera("producer.cti")


def test_the_names_that_are_called_exist(cti):
    """In the real package, where it is installed."""
    core = pytest.importorskip("harvesters.core")
    gentl, genapi = pytest.importorskip("genicam.gentl"), pytest.importorskip("genicam.genapi")
    assert {"timeout", "is_raw"} <= inspect.signature(core.ImageAcquirer.try_fetch).parameters.keys()
    assert "check_validity" in inspect.signature(core.Harvester.add_file).parameters
    for owner, names in (
        (core.Harvester, "update create reset device_info_list"),
        (core.ImageAcquirer, "add_callback start destroy data_streams remote_device"),
        (core.ImageAcquirer.Events, "INCOMPLETE_BUFFER"),
        (core.DeviceInfo, "property_dict"),
        (core.Callback, "emit"),
        (
            gentl.Buffer,
            "frame_id height width delivered_image_height pixel_format padding_x image_offset payload_type "
            "raw_buffer parent",
        ),
        (gentl.DataStream, "queue_buffer"),
        (gentl.PAYLOADTYPE_INFO_IDS, "PAYLOAD_TYPE_IMAGE PAYLOAD_TYPE_CHUNK_DATA"),
        (gentl, "GenericException"),
        (genapi, "GenericException"),
        (genapi.IEnumeration, "get_int_value value"),
    ):
        for name in names.split():
            assert hasattr(owner, name), f"{owner}.{name}"
    assert "serial_number" in core.DeviceInfo.search_keys
    assert set(PIXEL_FORMATS) <= set(pytest.importorskip("harvesters.util.pfnc").dict_by_ints.values())
    with pytest.raises(BackendError, match="is no GenTL producer that loads here"):
        HarvestersCamera(cti)
