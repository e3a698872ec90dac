"""Basler cameras (GigE, USB3, CoaXPress) through Basler's own package pypylon."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

from sprfast.errors import CameraError, InputError
from sprfast.line.sources.buffers import form, pixels
from sprfast.line.sources.camera import Picture
from sprfast.system.libraries import require

_BAYER = ("BayerRG8", "BayerGR8", "BayerGB8", "BayerBG8")  # delivered as RGB
_OLD_NAMES = {"RGB8Packed": "RGB8", "BGR8Packed": "BGR8"}  # of GigE Vision 1
_NO_NUMBER = 2**64 - 1  # of a block whose transport does not count


class BaslerCamera:
    """A `Camera` over pypylon; exposure, trigger and pixel format are those set on the camera, but
    for `features`.

    The number of a picture is the camera's block id, the trigger time that of its arrival. Bayer
    pictures are turned into RGB by pylon's converter.

    Args:
        device: the camera's serial number, or its place in pylon's list; None: the only camera
            there is.
        features: values by GenICam name, set in this order each time it is opened, such as
            {"PixelFormat": "BayerRG8", "TriggerMode": "On", "TriggerSource": "Line1"}.

    Raises:
        BackendError: pypylon is not installed.
        InputError: the camera does not take a feature, or its pixel format is not supported.
        CameraError: the camera is not there or cannot be opened.
    """

    def __init__(self, device: str | int | None = None, features: Mapping[str, object] | None = None) -> None:
        self._pylon: Any = require("pypylon.pylon", "basler")
        self._failure: type[Exception] = require("pypylon.genicam", "basler").GenericException
        self._name = f"camera {0 if device is None else device}"
        self._camera: Any = self._pylon.InstantCamera()
        self._converter: Any = self._pylon.ImageFormatConverter()
        self._converter.OutputPixelFormat = self._pylon.PixelType_RGB8packed
        try:
            self._connect(device, features or {})
        except BaseException:
            self.close()
            raise

    def grab(self, timeout: float) -> Picture | None:
        """The next picture; see `Camera.grab`."""
        camera, milliseconds = self._camera, max(1, math.ceil(timeout * 1e3))
        try:
            if camera.IsCameraDeviceRemoved() or not camera.IsGrabbing():
                raise CameraError(f"{self._name}: the connection is lost, the camera is gone")
            result = camera.RetrieveResult(milliseconds, self._pylon.TimeoutHandling_Return)
        except self._failure as error:
            raise CameraError(f"{self._name}: the connection is lost ({_line(error)})") from error
        arrived = time.monotonic()
        if not result.IsValid():
            return None
        try:
            return self._picture(result, arrived)
        finally:
            result.Release()

    def close(self) -> None:
        """Let the camera go."""
        for step in (self._camera.StopGrabbing, self._camera.Close, self._camera.DestroyDevice):
            with contextlib.suppress(self._failure):  # as where the camera was unplugged
                step()

    def _connect(self, device: str | int | None, features: Mapping[str, object]) -> None:
        factory = self._pylon.TlFactory.GetInstance()
        try:
            found = factory.EnumerateDevices()
        except self._failure as error:
            raise CameraError(f"{self._name}: cameras cannot be listed ({_line(error)})") from error
        serials = [info.GetSerialNumber() for info in found]
        if device is None and len(found) > 1:
            raise InputError(f"{len(found)} cameras: name one by its serial number, {' or '.join(serials)}")
        there = f"cameras by serial number: {', '.join(serials) or 'none'}"
        place = (serials.index(device) if device in serials else -1) if isinstance(device, str) else device or 0
        if not 0 <= place < len(found):
            raise CameraError(f"{self._name}: cannot be opened, it is not there; {there}")
        try:
            self._camera.Attach(factory.CreateDevice(found[place]))
            # without pylon's usual configuration, which switches the trigger off
            self._camera.RegisterConfiguration(None, self._pylon.RegistrationMode_ReplaceAll, self._pylon.Cleanup_None)
            self._camera.Open()
            self._camera.AcquisitionMode.Value = "Continuous"
            for name, value in features.items():
                self._set(name, value)
            name = self._camera.PixelFormat.Value
            self._pixel_format = _OLD_NAMES.get(name, name)
            form(self._pixel_format, _BAYER)  # refuses what no picture could come of
            self._camera.StartGrabbing(self._pylon.GrabStrategy_OneByOne)
        except self._failure as error:
            raise CameraError(f"{self._name}: cannot be opened ({_line(error)}); {there}") from error

    def _set(self, name: str, value: object) -> None:
        try:
            self._camera.GetNodeMap().GetNode(name).FromString(str(value))
        except (self._failure, AttributeError) as error:  # AttributeError: there is no such node
            raise InputError(f"{self._name}: feature {name} does not take {value!r} ({_line(error)})") from error

    def _picture(self, result: Any, arrived: float) -> Picture:
        number = result.GetBlockID()
        number = None if number == _NO_NUMBER else number
        try:
            if not result.GrabSucceeded():
                raise CameraError(f"the picture is not whole ({_line(result.GetErrorDescription())})")
            image, name = result, self._pixel_format
            if name in _BAYER:
                image, name = self._converter.Convert(result), "RGB8"
            with image.GetMemoryView() as data:
                values, order = pixels(data, name, image.GetHeight(), image.GetWidth(), image.GetPaddingX())
        except (CameraError, InputError, self._failure) as error:
            return Picture(None, number, arrived, fault=CameraError(f"{self._name}: {_line(error)}"))
        return Picture(values, number, arrived, order)


def _line(error: object) -> str:
    return " ".join(str(error).split())
