"""The cache of what was built: what may be used comes back, everything else is a miss with a
reason.
"""

import json
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest

from sprfast.backends.sessions import cache as plan_cache
from sprfast.backends.sessions.cache import MissError, PlanCache, structure_sha256
from sprfast.errors import BackendError
from sprfast.formats.manifest import signed
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model
from support import ROOT

KEY = {
    "flavour": "tensorrt",
    "tensorrt": "11.4.0",
    "name": "GPU",
    "options": {"profiles": [[1, 1, 1]], "stripped": True},
}
PLAN = bytes(range(256)) * 1000
CERTIFICATE = {"probe_relative_rms": 1e-6}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    chosen = tmp_path / "cache"
    monkeypatch.setenv("SPRFAST_CACHE_DIR", str(chosen))
    return chosen


@pytest.fixture
def cache(folder):
    cache = PlanCache("plan")
    cache.store(KEY, PLAN, CERTIFICATE)
    return cache


def files(cache):
    """Of the only entry: the plan and what belongs to it."""
    (plan,), (document,) = cache.folder.glob("*.plan"), cache.folder.glob("*.json")
    assert len(list(cache.folder.iterdir())) == 2
    return plan, document


def reason(cache, key=KEY):
    with pytest.raises(MissError) as raised:
        cache.load(key)
    return str(raised.value)


def test_what_was_stored_comes_back(cache):
    assert cache.load(KEY) == PLAN
    assert PlanCache("plan").load(dict(reversed(KEY.items()))) == PLAN  # in any order
    assert json.loads(files(cache)[1].read_text())["certificate"] == CERTIFICATE


def test_files_and_folder_are_the_users_alone(cache, folder):
    assert cache.folder == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(cache)] == [0o600, 0o600]


@pytest.mark.parametrize(
    "change",
    [
        {"tensorrt": "11.4.1"},
        {"name": "other GPU"},
        {"options": {"profiles": [[1, 1, 1]], "stripped": False}},
        {"more": 1},
    ],
)
def test_another_key_is_a_miss_without_a_reason(cache, change):
    assert reason(cache, {**KEY, **change}) == ""


def test_entries_of_another_kind_are_apart(cache):
    assert reason(PlanCache("timings")) == ""


def test_an_entry_under_a_foreign_name_is_a_miss(cache):
    """As if two keys had one hash, or files had been renamed."""
    other = {**KEY, "name": "other GPU"}
    cache.store(other, b"other", {})
    for mine, theirs in zip(cache._names(KEY), cache._names(other), strict=True):
        os.replace(cache.folder / theirs, cache.folder / mine)
    assert "was made for another key" in reason(cache)


@pytest.mark.parametrize("at", [0, len(PLAN) // 2, len(PLAN) - 1])
def test_a_flipped_bit_in_a_plan_is_a_miss(cache, at):
    plan, _ = files(cache)
    plan.write_bytes(PLAN[:at] + bytes([PLAN[at] ^ 1]) + PLAN[at + 1 :])
    assert "does not match its sha256, the file is damaged" in reason(cache)


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1])
def test_a_plan_that_was_cut_short_is_a_miss(cache, size):
    os.truncate(files(cache)[0], size)
    assert "the file is damaged" in reason(cache)


def test_every_change_of_the_document_is_a_miss(cache):
    _, path = files(cache)
    text = path.read_bytes()
    for at in range(0, len(text), 7):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        assert reason(cache)
    for size in range(0, len(text), 50):
        path.write_bytes(text[:size])
        assert reason(cache)
    path.write_bytes(text)
    assert cache.load(KEY) == PLAN


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "timings"}, "expected a 'plan' file"),
        ({"format_version": 99}, "upgrade sprfast"),
        ({"key": None}, "field 'key' is NoneType"),
        ({"content_sha256": 5}, "field 'content_sha256' is int"),
    ],
)
def test_a_signed_document_of_another_form_is_a_miss(cache, change, match):
    _, path = files(cache)
    document = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_text(signed({**document, **change}))
    assert match in reason(cache)


def test_a_document_that_is_too_large_is_a_miss(cache):
    _, path = files(cache)
    path.write_bytes(b" " * (plan_cache.MAX_DOCUMENT_BYTES + 1))
    assert "allowed up to 1048576" in reason(cache)


@pytest.mark.parametrize("missing", [0, 1])
def test_half_an_entry_is_a_miss_with_a_reason(cache, missing):
    files(cache)[missing].unlink()
    assert "cannot be used" in reason(cache)


@pytest.mark.parametrize("which", [0, 1])
def test_links_are_not_followed(cache, which, tmp_path):
    path = files(cache)[which]
    os.replace(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "symbolic links" in reason(cache)


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_others_can_write_is_a_miss(cache, which):
    files(cache)[which].chmod(0o666)
    assert "can be written by others (mode 666)" in reason(cache)


def test_a_pipe_is_a_miss_rather_than_a_wait(cache):
    path, _ = files(cache)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert "is not a regular file" in reason(cache)


def test_storing_again_replaces(cache):
    os.truncate(files(cache)[0], 5)
    cache.store(KEY, b"new", {})
    assert cache.load(KEY) == b"new"
    files(cache)


def test_storing_does_not_write_through_a_link(cache, tmp_path):
    path, _ = files(cache)
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(target)
    cache.store(KEY, PLAN, {})
    assert target.read_bytes() == b"precious"
    assert cache.load(KEY) == PLAN


def test_what_is_discarded_is_gone(cache):
    cache.discard(KEY)
    assert reason(cache) == ""
    assert list(cache.folder.iterdir()) == []
    cache.discard(KEY)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_refused(cache, folder, mode):
    folder.chmod(mode)
    for use in (
        lambda: PlanCache("plan"),
        lambda: cache.load(KEY),
        lambda: cache.store(KEY, PLAN, {}),
        lambda: cache.discard(KEY),
    ):
        with pytest.raises(
            BackendError, match=rf"cache: can be written by others \(mode {mode:o}\), and plans are code; run chmod 700"
        ):
            use()


def test_a_folder_of_another_user_is_refused(cache, monkeypatch):
    owner = cache.folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(BackendError, match=rf"belongs to user {owner}, not to {owner + 1}, and plans are code"):
        PlanCache("plan")


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "real").mkdir(0o700)
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(BackendError, match="is a symbolic link, the cache must be a folder itself"):
        PlanCache("plan")


def test_the_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SPRFAST_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_cache.default_folder() == tmp_path / ".cache" / "sprfast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert plan_cache.default_folder() == tmp_path / "xdg" / "sprfast"


def test_a_home_that_cannot_be_written_gives_a_temporary_folder_and_one_warning(tmp_path, monkeypatch):
    monkeypatch.delenv("SPRFAST_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").write_bytes(b"")  # not a folder, which stops root too
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.warns(UserWarning, match=r"home/\.cache/sprfast: cannot be written .* set SPRFAST_CACHE_DIR"):
        cache = PlanCache("plan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PlanCache("plan")
    assert cache.folder == again.folder
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    cache.store(KEY, PLAN, {})
    assert again.load(KEY) == PLAN


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_gives_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SPRFAST_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert not PlanCache("plan").folder.is_relative_to(tmp_path)


def test_a_full_disk_is_a_warning_and_leaves_what_was_there(cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="could not be kept .No space left on device.; it will be built again"):
        cache.store(KEY, b"new", {})
    assert cache.load(KEY) == PLAN
    files(cache)


WRITER = """
import sys
from sprfast.backends.sessions.cache import PlanCache
cache, mine = PlanCache("plan"), sys.argv[1].encode() * 200_000
for _ in range(30):
    cache.store({"key": 1}, mine, {})
    assert len(set(cache.load({"key": 1}))) == 1
"""


def test_two_processes_may_write_one_entry_at_once(folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=ROOT) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert PlanCache("plan").load({"key": 1})[:1] in (b"a", b"b")
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_timing_cache_is_not_used(folder):
    cache = PlanCache("timings")
    cache.store(KEY, b"timed", {})
    (path,) = folder.glob("*.timings")
    path.write_bytes(b"garbage")
    assert "does not match its sha256" in reason(cache)


def test_models_of_one_structure_share_what_has_no_weights(small_model):
    plan = fold(small_model)
    graph = onnx_model(plan, 32, 32, precision="float16")
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    for constant in other.graph.initializer:
        if constant.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and len(constant.raw_data) > 32:
            constant.raw_data = bytes(len(constant.raw_data))
    first, second = graph.SerializeToString(), other.SerializeToString()
    assert first != second
    assert structure_sha256(first) == structure_sha256(second)


@pytest.mark.parametrize("change", ["scales", "shape", "type", "node", "size"])
def test_another_structure_is_another_one(small_model, change):
    graph = onnx_model(fold(small_model), 32, 32, precision="float16")
    before = structure_sha256(graph.SerializeToString())
    constants = {constant.name: constant for constant in graph.graph.initializer}
    numpy_helper = onnx.numpy_helper
    if change == "scales":  # of the Resize: not a weight
        constants["scales"].CopyFrom(numpy_helper.from_array(np.array([1, 1, 3, 3], np.float32), "scales"))
    elif change == "shape":
        weight = numpy_helper.to_array(constants["inc.first.weight"])
        constants["inc.first.weight"].CopyFrom(numpy_helper.from_array(weight.reshape(-1), "inc.first.weight"))
    elif change == "type":
        weight = numpy_helper.to_array(constants["inc.second.weight"])
        constants["inc.second.weight"].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "inc.second.weight"))
    elif change == "node":
        graph.graph.node[5].op_type = "Sub"
    else:
        graph = onnx_model(fold(small_model), 32, 48, precision="float16")
    assert structure_sha256(graph.SerializeToString()) != before


@pytest.mark.parametrize("content", [b"\xff", b"\x3a\xff\xff\x01", b"\x0d\x00\x00\x00\x00"])
def test_what_is_no_graph_has_no_structure(content):
    with pytest.raises(BackendError, match="graph: not an ONNX model"):
        structure_sha256(content)
