import errno
import os

import pytest

from sprfast.errors import InputError
from sprfast.system import lines
from sprfast.system.lines import Lines


def test_a_line_is_in_the_file_from_the_moment_it_is_written(tmp_path):
    path = tmp_path / "a"
    with Lines(path, keep=False) as written:
        for line in ("one", "zwei ü"):
            written.append(line)
            assert path.read_text("utf-8").endswith(f"{line}\n")
        assert list(written) == ["one", "zwei ü"]


def test_a_last_line_without_an_end_goes_and_the_others_stay(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\nthr")
    with Lines(path, keep=True) as written:
        assert list(written) == ["one", "two"]
        written.append("three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    with Lines(path, keep=False):
        assert path.read_bytes() == b""


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path, write = tmp_path / "a", os.write

    def full(descriptor, content):
        if len(content) < 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content[:4])

    with Lines(path, keep=False) as written:
        written.append("whole")
        monkeypatch.setattr(lines.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            written.append("half of it")
    assert path.read_bytes() == b"whole\n"


def test_what_is_no_regular_file_is_refused_and_so_is_a_second_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is a pipe"):
        Lines(tmp_path / "pipe", keep=True)
    with Lines(tmp_path / "a", keep=True), pytest.raises(InputError, match="another process"):
        Lines(tmp_path / "a", keep=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "pipe"]
