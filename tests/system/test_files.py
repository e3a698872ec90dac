"""Outputs: what they may replace, what they keep of it, and what a killed process leaves."""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import threading

import pytest

from sprfast.errors import InputError
from sprfast.system import files


def killed_in(work):
    """Run `work` in a fork that kills itself at its end."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def begin_to_write(path):
    with files.atomic_write(path) as stream:
        stream.write(b"half of it")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize("write", [lambda path: files.write_bytes(path, b"new"), files.check_writable])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_never_replaced(write, linked, tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for there, kind in ((pipe, "pipe"), (folder, "folder")):
        path = tmp_path / f"link-{kind}" if linked else there
        if linked:
            path.symlink_to(there)
        with pytest.raises(InputError, match=f"it is a {kind}"):
            write(path)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert folder.is_dir()
    assert not hidden(tmp_path)


def test_the_end_of_a_pipe_under_another_name_is_not_replaced():
    reader, writer = os.pipe()
    with pytest.raises(InputError, match="it is a pipe"):
        files.write_bytes(f"/proc/self/fd/{writer}", b"new")
    os.close(reader)
    os.close(writer)


def test_a_link_is_followed_to_its_file(tmp_path):
    (tmp_path / "store").mkdir()
    for name in ("old", "free"):
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "old").write_bytes(b"old")
    for name in ("old", "free"):
        files.write_bytes(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "store" / name).read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_replaced_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    files.write_bytes(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_a_replaced_file_keeps_its_owner(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
        files.write_bytes(path, b"new")
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)

    def denied(*_):
        raise PermissionError

    old = path.read_bytes()
    fstat = os.stat_result((*path.stat()[:4], 99, 99, *path.stat()[6:]))
    monkeypatch.setattr(os, "fstat", lambda descriptor: fstat)
    monkeypatch.setattr(os, "fchown", denied)
    monkeypatch.setattr(os.path, "samestat", lambda *_: True)
    with pytest.raises(InputError, match="would not keep its owner"):
        files.write_bytes(path, b"another")
    assert path.read_bytes() == old


def test_a_new_file_has_the_mode_of_the_umask_which_stays_as_it_is(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            files.write_bytes(tmp_path / "a", b"new")
            with files.atomic_folder(tmp_path / "folder"):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_read_only_file_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o444)
    for write in (files.check_writable, lambda each: files.write_bytes(each, b"new")):
        with pytest.raises(InputError, match="it is read-only"):
            write(path)
    assert path.read_bytes() == b"old"


def test_what_a_killed_process_left_is_removed_by_the_next_one_of_the_same_file_only(tmp_path):
    for name in ("a", "b"):
        killed_in(lambda name=name: begin_to_write(tmp_path / name))
    assert len(hidden(tmp_path)) == 2
    files.check_writable(tmp_path / "a")
    assert len(hidden(tmp_path)) == 1
    files.write_bytes(tmp_path / "b", b"whole")
    assert os.listdir(tmp_path) == ["b"]


def test_a_folder_that_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    def begin():
        with files.atomic_folder(tmp_path / "folder") as folder:
            (folder / "half").write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(begin)
    assert hidden(tmp_path)
    with files.atomic_folder(tmp_path / "folder") as folder:
        (folder / "whole").write_bytes(b"")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["whole"]


def test_two_that_write_one_file_take_turns(tmp_path):
    path, begun = tmp_path / "a", threading.Event()

    def second():
        begun.set()
        files.write_bytes(path, b"second")

    thread = threading.Thread(target=second)
    with files.atomic_write(path) as stream:
        thread.start()
        begun.wait()
        stream.write(b"first")
    thread.join()
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a"]


def test_work_on_one_file_is_for_one_at_a_time(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with files.exclusive(tmp_path / "a"):
        for name in ("a", "link"):
            with pytest.raises(InputError, match="another process is working on it"), files.exclusive(tmp_path / name):
                pass
        with files.exclusive(tmp_path / "b"):
            pass
    with files.exclusive(tmp_path / "link"):
        pass
    assert os.listdir(tmp_path) == ["link"]


def test_a_file_system_without_locks_is_written_too(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with files.exclusive(tmp_path / "a"), files.atomic_write(tmp_path / "a") as stream:
        stream.write(b"one")
        files.write_bytes(tmp_path / "a", b"two")
        assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_process_and_its_forks_keep_nobody_from_a_file(tmp_path):
    reader, writer = os.pipe()
    held = contextlib.ExitStack()

    def begin():
        held.enter_context(files.exclusive(tmp_path / "a"))
        if not os.fork():
            os.close(writer)
            os.read(reader, 1)  # lives on until the test ends
            os._exit(0)

    killed_in(begin)
    assert hidden(tmp_path)
    with files.exclusive(tmp_path / "a"):
        pass
    assert not hidden(tmp_path)
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("output", ["parts", "./other/../parts", "link", ".", "parts/0.png"])
def test_no_output_is_or_holds_what_is_read(output, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "other").mkdir()
    source = tmp_path / "parts" / "0.png"
    source.write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "parts")
    for spelled in (source, tmp_path / "link" / "0.png", tmp_path / "other" / ".." / "parts" / "0.png"):
        with pytest.raises(InputError, match="read here"):
            files.refuse_source(f"{tmp_path}/{output}", [spelled])
    for free in ("other", "parts/new", "no"):
        files.refuse_source(tmp_path / free, [source])


def test_no_output_holds_a_link_to_what_is_read(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.png").symlink_to(tmp_path / "store")
    with pytest.raises(InputError, match="holds"):
        files.refuse_source(tmp_path / "parts", [tmp_path / "parts" / "0.png"])
