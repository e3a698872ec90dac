"""Cameras and streams that OpenCV reads: USB cameras, RTSP and HTTP addresses, recordings."""

from __future__ import annotations

import importlib
import os
import re
import time
from typing import Any

from sprfast.errors import BackendError, CameraError
from sprfast.line.sources.camera import Picture
from sprfast.system.redaction import redacted


class OpenCvCamera:
    """A `Camera` over cv2.VideoCapture; its pictures are BGR and have no number, so that one which
    OpenCV drops goes unnoticed.

    The trigger time is that of the picture's arrival. `grab` waits for the next picture as long as
    OpenCV does: `timeout` for an address, and what the driver allows for a device.

    Args:
        device: the number of a device, an address such as "rtsp://…", or the path of a device or a
            recording.
        timeout: seconds to connect to an address, and to wait for a picture of it before the
            connection counts as lost.

    Raises:
        BackendError: OpenCV is not installed.
        CameraError: the camera cannot be opened.
    """

    def __init__(self, device: int | str, *, timeout: float = 5.0) -> None:
        try:
            self._cv2: Any = importlib.import_module("cv2")
        except ImportError as error:
            raise BackendError(
                f"source opencv: OpenCV does not load ({error}); pip install 'sprfast[opencv]'"
            ) from error
        cv2 = self._cv2
        self._name = f"camera {redacted(str(device))}"
        self._is_recording = isinstance(device, str) and os.path.isfile(device)
        if isinstance(device, str) and re.match(r"[A-Za-z][\w+.-]*://", device):
            most = round(timeout * 1e3)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, most, cv2.CAP_PROP_READ_TIMEOUT_MSEC, most]
            # the limits are for this one of its readers
            self._capture = cv2.VideoCapture(device, cv2.CAP_FFMPEG, limits)
        else:
            self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            self.close()
            raise CameraError(f"{self._name}: cannot be opened; is it there, free, and allowed to this user?")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture; readers that hold back none say no

    def grab(self, timeout: float) -> Picture:
        """The next picture; see `Camera.grab` and, for `timeout`, above."""
        try:
            whole, image = self._capture.read()
        except self._cv2.error as error:
            raise CameraError(f"{self._name}: {redacted(' '.join(str(error).split()))}") from error
        if not whole and self._is_recording:
            raise EOFError
        if not whole:
            raise CameraError(f"{self._name}: no picture came, the connection is lost")
        return Picture(image, None, time.monotonic(), "bgr")

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()
