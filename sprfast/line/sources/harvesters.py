"""GenICam cameras (GigE Vision, USB3 Vision and others), through the producer that comes with them
and the package harvesters.

The conversion of buffers is tested; the connection has been written against harvesters 1.4.3 and
has not run on a camera.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sprfast.data.images import display_name
from sprfast.errors import BackendError, CameraError, InputError
from sprfast.line.sources.buffers import form, pixels
from sprfast.line.sources.camera import Picture

_log = logging.getLogger("sprfast.sources")


class HarvestersCamera:
    """A `Camera` over harvesters; exposure, trigger and pixel format are those set on the camera.

    The number of a picture is the buffer's frame id, the trigger time that of its arrival. A buffer
    that is not whole is returned by the package without its number.

    Args:
        cti: the producer's file, which comes with the camera maker's software.
        device: the camera's serial number, or its place in the producer's list; None: the only
            camera there is.

    Raises:
        BackendError: harvesters is not installed, or the producer does not load.
        InputError: there is no such file, or the camera's pixel format is not supported.
        CameraError: the camera is not there or cannot be opened.
    """

    def __init__(self, cti: str | os.PathLike[str], device: str | int | None = None) -> None:
        try:
            self._core: Any = importlib.import_module("harvesters.core")
            self._gentl: Any = importlib.import_module("genicam.gentl")
            genapi: Any = importlib.import_module("genicam.genapi")
            self._names: dict[int, str] = importlib.import_module("harvesters.util.pfnc").dict_by_ints
        except ImportError as error:
            raise BackendError(
                f"source harvesters: it does not load ({error}); pip install 'sprfast[harvesters]'"
            ) from error
        self._failures: tuple[type[Exception], ...] = (self._gentl.GenericException, genapi.GenericException)
        path = os.fspath(cti)
        if not os.path.isfile(path):
            raise InputError(
                f"{display_name(path)}: no such file; name the .cti file that comes with the camera maker's software"
            )
        self._name = f"camera {0 if device is None else device}"
        self._incomplete = False
        self._acquirer: Any = None
        self._harvester: Any = self._core.Harvester()
        try:
            with _signals_kept():
                self._connect(path, device)
        except BaseException:
            self.close()
            raise

    def grab(self, timeout: float) -> Picture | None:
        """The next picture; see `Camera.grab`."""
        try:
            buffer = self._acquirer.try_fetch(timeout=max(timeout, 1e-3), is_raw=True)  # 0 would wait for ever
        except self._failures as error:
            raise CameraError(f"{self._name}: the connection is lost ({error})") from error
        arrived = time.monotonic()
        if self._incomplete:
            self._incomplete = False
            fault = CameraError(f"{self._name}: a picture was not whole, data was lost on its way")
            return Picture(None, None, arrived, fault=fault)
        if buffer is None:
            return None
        try:
            return self._picture(buffer, arrived)
        except self._failures as error:
            raise CameraError(f"{self._name}: a buffer cannot be read ({error})") from error
        finally:
            with contextlib.suppress(*self._failures):
                buffer.parent.queue_buffer(buffer)

    def close(self) -> None:
        """Let the camera go."""
        try:
            if self._acquirer is not None:
                self._acquirer.destroy()
            self._harvester.reset()
        except self._failures as error:  # as where the camera was unplugged
            _log.warning("%s: could not be closed (%s)", self._name, error)

    def _connect(self, path: str, device: str | int | None) -> None:
        try:
            self._harvester.add_file(path, check_validity=True)
        except OSError as error:
            raise BackendError(f"{display_name(path)}: is no GenTL producer that loads here ({error})") from error
        self._harvester.update()
        found = [str(info.property_dict.get("serial_number")) for info in self._harvester.device_info_list]
        if device is None and len(found) > 1:
            raise InputError(f"{len(found)} cameras: name one by its serial number, {' or '.join(found)}")
        key = {"serial_number": device} if isinstance(device, str) else device or 0
        refusals: tuple[type[Exception], ...] = (*self._failures, ValueError, IndexError)
        try:
            self._acquirer = self._harvester.create(key)
            streams = len(self._acquirer.data_streams)
            if streams != 1:
                raise InputError(f"{self._name}: has {streams} data streams, supported is one")
            form(self._acquirer.remote_device.node_map.PixelFormat.value)  # refuses what no picture could come of
            self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, self._on_incomplete())
            self._acquirer.start()
        except refusals as error:
            there = ", ".join(found) or "none"
            raise CameraError(f"{self._name}: cannot be opened ({error}); cameras by serial number: {there}") from error

    def _on_incomplete(self) -> Any:
        """What the package calls for a buffer that it discards."""

        def emit(_: object, context: object = None) -> None:
            self._incomplete = True

        return type("Incomplete", (self._core.Callback,), {"emit": emit})()

    def _picture(self, buffer: Any, arrived: float) -> Picture:
        """The package's own arrays are not used: it leaves the padding in them."""
        nodes, types = self._acquirer.remote_device.node_map, self._gentl.PAYLOADTYPE_INFO_IDS
        number = self._info(buffer, "frame_id", lambda: None)
        height = self._info(buffer, "height", lambda: nodes.Height.value)
        delivered = self._info(buffer, "delivered_image_height", lambda: 0) or height
        code = self._info(buffer, "pixel_format", nodes.PixelFormat.get_int_value)
        try:
            if buffer.payload_type not in (types.PAYLOAD_TYPE_IMAGE, types.PAYLOAD_TYPE_CHUNK_DATA):
                raise CameraError("the buffer is no plain image; switch multi-part and compression off on the camera")
            if delivered < height:
                raise CameraError(f"the picture is not whole, it has {delivered} of {height} rows")
            image, order = pixels(
                buffer.raw_buffer,
                self._names.get(code, f"{code:#010x}"),
                height,
                self._info(buffer, "width", lambda: nodes.Width.value),
                self._info(buffer, "padding_x", lambda: 0),
                self._info(buffer, "image_offset", lambda: 0),
            )
        except (CameraError, InputError) as error:
            return Picture(None, number, arrived, fault=CameraError(f"{self._name}: {error}"))
        return Picture(image, number, arrived, order)

    def _info(self, buffer: Any, name: str, otherwise: Callable[[], Any]) -> Any:
        """What the producer says of a buffer, where it does."""
        try:
            return getattr(buffer, name)
        except self._gentl.GenericException:
            return otherwise()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Where it connects in the main thread, harvesters sets a handler of SIGINT that would take the
    place of the program's.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
