"""A folder as a source: each new file becomes one frame."""

import io
import itertools
import logging
import os
import threading
import time

import numpy as np
import PIL.Image
import pytest

from sprfast.errors import CameraError, InputError
from sprfast.line.sources import FolderWatch
from support.source_cases import PATIENCE, PICTURES, consume, ids


def write(path, seed=0):
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)).save(path)
    return path


def test_new_files_in_the_order_of_their_times(tmp_path):
    write(tmp_path / "old.png")
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    names = ["c.png", "with space.JPG", os.fsdecode(b"caf\xe9.png"), "a.png"]
    for index, name in enumerate(names):
        write(tmp_path / name)
        os.utime(tmp_path / name, ns=(10**18 + index, 10**18 + index))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    begun = time.monotonic()
    frames = list(itertools.islice(watch, 4))
    assert [frame.image for frame in frames] == [tmp_path / name for name in names]
    assert ids(frames) == ["c.png", "with space.JPG", r"caf\xe9.png", "a.png"]
    assert all(begun <= frame.trigger_time <= time.monotonic() for frame in frames)
    assert watch._look() == []


def test_what_lies_there_is_included_where_asked(tmp_path):
    write(tmp_path / "old.png")
    assert ids(itertools.islice(FolderWatch(tmp_path, settle=0.0, existing=True), 1)) == ["old.png"]


def test_a_file_is_seen_when_it_has_not_changed_for_a_while(tmp_path):
    content = write(tmp_path / "source.bmp").read_bytes()
    watch = FolderWatch(tmp_path, settle=0.1)
    with open(tmp_path / "slow.bmp", "wb") as file:
        for chunk in np.array_split(np.frombuffer(content, np.uint8), 4):
            file.write(chunk)
            file.flush()
            assert watch._look() == []  # it has changed since the last look, however long ago that was
            time.sleep(0.15)
    assert watch._look() == ["slow.bmp"]


def test_hundreds_of_files_while_it_watches(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.5)
    buffer = io.BytesIO()
    PIL.Image.fromarray(PICTURES[0]).save(buffer, "PNG")
    content = buffer.getvalue()

    def produce():
        for index in range(300):
            if index % 2:
                (tmp_path / f"{index}.part").write_bytes(content)
                os.rename(tmp_path / f"{index}.part", tmp_path / f"{index}.png")
            else:
                (tmp_path / f"{index}.png").write_bytes(content)

    producer = threading.Thread(target=produce)
    producer.start()
    frames = list(itertools.islice(watch, 300))
    producer.join(PATIENCE)
    assert sorted(ids(frames)) == sorted(f"{index}.png" for index in range(300))
    assert all(np.array_equal(np.asarray(PIL.Image.open(frame.image)), PICTURES[0]) for frame in frames)


def test_a_file_that_changes_is_yielded_again_under_its_name(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    frames = iter(watch)
    write(tmp_path / "latest.png", 1)
    assert next(frames).id == "latest.png"
    assert watch._look() == []
    write(tmp_path / "latest.png", 2)
    os.utime(tmp_path / "latest.png", ns=(1, 1))
    assert next(frames).id == "latest.png"


def test_only_what_lies_there_is_remembered(tmp_path):
    watch = FolderWatch(tmp_path, poll=0.01, settle=0.0)
    frames = iter(watch)
    for index in range(50):
        path = write(tmp_path / f"{index}.png")
        assert next(frames).id == f"{index}.png"
        path.unlink()
    watch._look()
    assert watch._files == {}


def test_symbolic_links_are_passed_over(tmp_path, caplog):
    secret = write(tmp_path / "secret.png")
    folder = tmp_path / "watched"
    folder.mkdir()
    watch = FolderWatch(folder, poll=0.01, settle=0.0)
    (folder / "link.png").symlink_to(secret)
    write(folder / "part.png")
    assert ids(itertools.islice(watch, 1)) == ["part.png"]
    assert watch._look() == []
    assert caplog.messages == [f"{folder}: link.png is a symbolic link"]


def test_a_folder_that_vanishes_is_waited_for(tmp_path, caplog):
    folder = tmp_path / "share"
    folder.mkdir()
    write(folder / "old.png")
    watch = FolderWatch(folder, poll=0.01, settle=0.0, first_wait=0.01, longest_wait=0.02)
    away = tmp_path / "away"
    folder.rename(away)
    frames, thread = [], None

    def take():
        for frame in watch:
            frames.append(frame)
            watch.close()

    with caplog.at_level(logging.INFO, "sprfast.sources"):
        thread = threading.Thread(target=take)
        thread.start()
        until = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.005)
        write(away / "new.png")
        away.rename(folder)
        thread.join(PATIENCE)
    assert ids(frames) == ["new.png"]  # what it knew, it still knows
    assert caplog.messages == [
        f"{folder}: the folder cannot be read (No such file or directory)",
        f"{folder}: the folder can be read again",
    ]


def test_a_folder_that_stays_away_is_given_up(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    watch = FolderWatch(folder, first_wait=0.01, give_up=0.05)
    folder.rmdir()
    with pytest.raises(CameraError, match=r"share: the folder cannot be read \(No such file or directory\); given up"):
        list(watch)


@pytest.mark.parametrize("name", ["nothing", "file.png", "nul\0"])
def test_a_folder_that_is_not_there(tmp_path, name):
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match="the folder cannot be read"):
        FolderWatch(tmp_path / name)


@pytest.mark.parametrize("arguments", [{"poll": 0.0}, {"settle": -1.0}, {"settle": float("nan")}])
def test_waits_of_a_folder_that_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        FolderWatch(tmp_path, **arguments)


def test_close_ends_a_watch(tmp_path):
    watch = FolderWatch(tmp_path, poll=1000.0)
    _, thread = consume(watch)
    watch.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
