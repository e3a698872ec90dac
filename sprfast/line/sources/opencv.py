"""Cameras and streams that OpenCV reads: USB cameras, RTSP and HTTP addresses, recordings."""

from __future__ import annotations

import collections
import importlib
import os
import re
import time
from typing import Any

from sprfast.errors import BackendError, CameraError, InputError
from sprfast.line.sources.camera import Picture
from sprfast.line.sources.ids import MOST
from sprfast.system.redaction import redacted

TRIES = 10  # reads in a row that fail where a recording of unknown length ends
LIVE = r"(?!https?:|file:)[A-Za-z][\w+.-]*://"  # addresses without an end, whatever they say


class OpenCvCamera:
    """A `Camera` over cv2.VideoCapture; its pictures are BGR and have no number, so that one which
    OpenCV drops goes unnoticed.

    A recording is a file, a pattern of image files such as "part_%03d.png", or an address with an
    end. It is read once. A picture of it that cannot be read is a fault of its trigger, as are all
    up to the number that the recording says it has; where it does not say one, it ends with
    `TRIES` failed reads in a row.

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
        self._ahead: collections.deque[Picture] = collections.deque()  # read to see whether a recording goes on
        self._name = f"camera {redacted(str(device))}"
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
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(count) if 0 < count < 2**31 else None  # of a recording, where it is known
        ends = isinstance(device, str) and not re.match(LIVE, device)
        self._is_recording = ends and (os.path.isfile(device) or self._count is not None)
        self._taken = 0  # pictures of a recording, read or not
        self._failures = 0  # of reading it, in a row

    def grab(self, timeout: float) -> Picture:
        """The next picture; see `Camera.grab` and, for `timeout`, above.

        Raises:
            InputError: `MOST` pictures of a recording in a row cannot be read.
        """
        if self._is_recording:
            return self._next_of_recording()
        image, reason = self._read()
        if image is None:
            raise CameraError(f"{self._name}: {reason or 'no picture came, the connection is lost'}")
        return Picture(image, None, time.monotonic(), "bgr")

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()
        self._count = 0  # nothing of a recording is left
        self._ahead.clear()

    def _read(self) -> tuple[Any, str]:
        """A picture, or None and why, where OpenCV says so."""
        try:
            whole, image = self._capture.read()
        except self._cv2.error as error:
            return None, redacted(" ".join(str(error).split()))
        return (image if whole else None), ""

    def _next_of_recording(self) -> Picture:
        while not self._ahead:
            if self._count is not None and self._taken >= self._count:
                raise EOFError
            image, reason = self._read()
            self._taken += 1
            if image is not None:
                faults = self._failures if self._count is None else 0
                self._ahead.extend([self._unread("")] * faults)
                self._ahead.append(Picture(image, None, time.monotonic(), "bgr"))
                self._failures = 0
                continue
            self._failures += 1
            if self._count is not None:
                self._ahead.append(self._unread(reason))
            elif self._failures == TRIES:
                raise EOFError
            if self._failures > MOST:
                raise InputError(
                    f"{self._name}: {MOST} pictures in a row cannot be read, from {self._taken - MOST} of "
                    f"{self._count} on"
                )
        return self._ahead.popleft()

    def _unread(self, reason: str) -> Picture:
        said = f" ({reason})" if reason else ""
        fault = CameraError(f"{self._name}: a picture of the recording cannot be read{said}")
        return Picture(None, None, time.monotonic(), fault=fault)
