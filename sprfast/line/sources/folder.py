"""A folder that a camera's software writes to, as a source."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from sprfast.data.folders import IMAGE_SUFFIXES
from sprfast.data.images import display_name
from sprfast.errors import CameraError, InputError
from sprfast.line.durations import seconds
from sprfast.line.frames import Frame
from sprfast.line.sources.retry import Retry

_log = logging.getLogger("sprfast.sources")


@dataclasses.dataclass
class _File:
    """What is known of a file that lies in the folder."""

    form: tuple[int, int]  # bytes, and nanoseconds of its last change
    seen: float  # first, in seconds of `time.monotonic`
    since: float  # when it has had this form
    done: bool  # nothing is to be yielded until it changes


class FolderWatch:
    """Yields a frame for each new picture file, the oldest first; its id is the file's name, its
    image the path.

    The folder is listed every `poll` seconds, which works on network shares too. A file is yielded
    when its size and its time of change have been the same for `settle` seconds. A program that
    writes under another suffix and renames shows whole files only: then `settle` may be 0. A file
    that changes after it was yielded is yielded again, and a line refuses it, since its id was
    used.

    What lies in the folder is remembered, and nothing else: a name that was gone for one look is
    new. Move or delete files once they have their answers, so that looking stays quick. Names that
    begin with a dot, other suffixes, folders and special files are passed over; so are symbolic
    links, wherever they lead, with a line in the log.

    Args:
        folder: where to look, not in its subfolders.
        poll: seconds between two looks.
        settle: seconds, see above.
        existing: yield also what lies there already.
        suffixes: of pictures, in lower case; files may have them in any case.
        first_wait, longest_wait: seconds before the first attempt to look again when the folder
            cannot be read, and what the wait doubles up to.
        give_up: seconds of that after which the iteration raises CameraError; None: it goes on for
            ever.

    Raises:
        InputError: the folder cannot be read, or an argument is not allowed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        poll: float = 0.2,
        settle: float = 0.5,
        existing: bool = False,
        suffixes: Collection[str] = IMAGE_SUFFIXES,
        first_wait: float = 0.5,
        longest_wait: float = 10.0,
        give_up: float | None = None,
    ) -> None:
        self._poll, self._settle = seconds("poll", poll, zero=False), seconds("settle", settle, zero=True)
        self._folder = Path(folder)
        self._suffixes = tuple(suffixes)
        self._retry = Retry(first_wait, longest_wait, give_up)
        self._files: dict[str, _File] = {}
        self._unreadable = ""  # why the folder cannot be read
        try:
            self._look()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            name = display_name(folder)
            raise InputError(f"{name}: the folder cannot be read ({reason}); name one that exists") from error
        for file in self._files.values():
            file.done = file.done or not existing

    def __iter__(self) -> Iterator[Frame]:
        """The frames, until `close`.

        Raises:
            CameraError: the folder could not be read for `give_up` seconds.
        """
        while not self._retry.closed():
            try:
                whole = self._look()
            except OSError as error:
                reason = f"the folder cannot be read ({error.strerror or error})"
                self._unreadable = f"{display_name(self._folder)}: {reason}"
                if not self._retry.failures:
                    self._note(reason)
                self._retry.sleep(self._retry.failed(CameraError(self._unreadable)))
                continue
            if self._retry.failures:
                self._note("the folder can be read again", logging.INFO)
            self._retry.failures, self._unreadable = 0, ""
            for name in whole:
                if self._retry.closed():
                    return
                file = self._files[name]
                file.done = True
                yield Frame(display_name(name), self._folder / name, file.seen)
            self._retry.sleep(self._poll)

    def close(self) -> None:
        """End the iteration soon; may be called from any thread or signal handler."""
        self._retry.close()

    def fault(self) -> str:
        """Why the folder cannot be read; "" while it can."""
        return self._unreadable

    def _look(self) -> list[str]:
        """The names of files that are whole and not yielded yet, the oldest first; a look that
        fails forgets none.
        """
        now = time.monotonic()
        files: dict[str, _File] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                named = not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in self._suffixes
                if named and (file := self._file(entry, now)):
                    files[entry.name] = file
        self._files = files
        whole = [name for name, file in files.items() if not file.done and now - file.since >= self._settle]
        return sorted(whole, key=lambda name: (files[name].form[1], name))

    def _file(self, entry: os.DirEntry[str], now: float) -> _File | None:
        known = self._files.get(entry.name)
        if entry.is_symlink():
            if known is None:
                self._note(f"{display_name(entry.name)} is a symbolic link")
            return known or _File((0, 0), now, now, done=True)
        if not entry.is_file(follow_symlinks=False):
            return None
        try:
            status = os.stat(entry.path, follow_symlinks=False)  # what `entry` holds may be out of date on Windows
        except FileNotFoundError:
            return None
        form = (status.st_size, status.st_mtime_ns)
        if known is None or (known.done and known.form != form):
            return _File(form, now, now, done=False)
        if known.form != form:
            known.form, known.since = form, now
        return known

    def _note(self, text: str, level: int = logging.WARNING) -> None:
        _log.log(level, "%s: %s", display_name(self._folder), text)
