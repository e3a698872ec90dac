import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sprfast.errors import InputError, ModelFileError
from sprfast.formats import tensors as archive
from sprfast.formats.manifest import FORMAT_VERSION, signed

DOCUMENT = {"rate": 1e-05, "name": "Stück \u0001", "levels": [1, 2.5, None, True], "state": 2**127 + 3}


def tensors():
    generator = np.random.default_rng(0)
    return {
        "b.weight": generator.standard_normal((3, 5), np.float32),
        "a.bias": generator.standard_normal(4),
        "step": np.array(7),
        "rng": np.arange(6, dtype=np.uint8),
        "half": np.ones((2, 2), np.float16),
        "flag": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
    }


@pytest.fixture
def path(tmp_path):
    archive.write(tmp_path / "a.safetensors", tensors(), DOCUMENT, kind="checkpoint")
    return tmp_path / "a.safetensors"


def refused(path, content, match, kind="checkpoint"):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match) as caught:
        archive.read(path, kind=kind)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def split(content):
    """Header as a dict, and data."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def forged(content, edit):
    """`content` with its manifest edited and signed anew, as a careful author of a bad file
    would.
    """
    header, data = split(content)
    manifest = json.loads(header["__metadata__"]["sprfast"])
    edit(header, manifest)
    manifest.pop("sha256")
    header["__metadata__"]["sprfast"] = signed(manifest)
    return joined(header, data)


def test_round_trip(path):
    got, document = archive.read(path, kind="checkpoint")
    assert document == DOCUMENT
    assert got.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert np.array_equal(got[name], tensor)
        assert got[name].flags.writeable


def test_it_is_an_ordinary_safetensors_file(path):
    with safetensors.safe_open(path, "np") as file:
        assert set(file.metadata()) == {"sprfast"}
        assert np.array_equal(file.get_tensor("b.weight"), tensors()["b.weight"])


def test_same_content_same_bytes_in_any_order(path, tmp_path):
    archive.write(
        tmp_path / "b", dict(reversed(tensors().items())), dict(reversed(DOCUMENT.items())), kind="checkpoint"
    )
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_views_are_stored_dense(tmp_path):
    whole = np.arange(12.0).reshape(3, 4)
    archive.write(tmp_path / "a", {"t": whole.T}, {}, kind="model")
    got, _ = archive.read(tmp_path / "a", kind="model")
    assert np.array_equal(got["t"], whole.T)


def test_reading_through_a_link(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    assert archive.read(tmp_path / "link", kind="checkpoint")[1] == DOCUMENT


def test_flipped_bits_are_noticed(path):
    content = path.read_bytes()
    header_end = 8 * (8 + struct.unpack("<Q", content[:8])[0])
    pick = random.Random(0).sample
    for bit in [*range(64), *pick(range(64, header_end), 300), *pick(range(header_end, 8 * len(content)), 100)]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            archive.read(path, kind="checkpoint")


def test_changed_spelling_of_a_number_in_the_manifest_is_noticed(path):
    content = path.read_bytes()
    assert content.count(b"1e-05") == 1
    refused(path, content.replace(b"1e-05", b"1E-05"), "sha256")


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for length in [*range(16), *range(16, len(content), 37), len(content) - 1]:
        refused(path, content[:length], "cut short|damaged|header")


def test_trailing_bytes_are_noticed(path):
    refused(path, path.read_bytes() + b"\0", "damaged")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spliced_files_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("spliced") / "a"
    archive.write(path, tensors(), DOCUMENT, kind="checkpoint")
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    spliced = content[:start] + data.draw(st.binary(max_size=40)) + content[stop:]
    if spliced != content:
        refused(path, spliced, ".")


def test_giant_header_length_is_refused(path):
    refused(path, struct.pack("<Q", 2**63) + b"{}", "allowed up to")
    refused(
        path, struct.pack("<Q", archive.MAX_HEADER_BYTES + 1) + b" " * (archive.MAX_HEADER_BYTES + 1), "allowed up to"
    )


def test_duplicate_json_keys_are_refused(path):
    header, data = split(path.read_bytes())
    text = json.dumps(header).encode()
    twice = json.dumps({"step": header["step"]}).encode()[1:-1]
    refused(path, joined(text[:-1] + b"," + twice + b"}", data), "duplicate key 'step'")
    manifest = header["__metadata__"]["sprfast"]
    header["__metadata__"]["sprfast"] = manifest[:-1] + ',"kind":"checkpoint"}'
    refused(path, joined(header, data), "duplicate key 'kind'")


def test_deep_nesting_is_refused(path):
    refused(path, joined(b'{"a":' + b"[" * 10**6), "JSON")
    refused(path, joined({"__metadata__": {"sprfast": '{"document":' * 10**5}}), "JSON")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 65, "9" * 5000])
def test_numbers_out_of_range_are_refused(path, number):
    refused(path, joined({"__metadata__": {"sprfast": f'{{"format_version":{number}}}'}}), "JSON")


def test_overlapping_tensors_are_refused(path):
    def edit(header, manifest):
        header["b.weight"]["data_offsets"] = [offset - 4 for offset in header["b.weight"]["data_offsets"]]

    refused(path, forged(path.read_bytes(), edit), "damaged")


def test_shape_product_overflow_is_refused(path):
    def edit(header, manifest):
        header["b.weight"]["shape"] = [2**62, 2**62]

    refused(path, forged(path.read_bytes(), edit), "damaged")


def test_dtype_that_is_not_allowed_is_refused(path):
    def edit(header, manifest):
        header["rng"]["dtype"] = manifest["tensors"]["rng"]["dtype"] = "F8_E8M0"

    refused(path, forged(path.read_bytes(), edit), "dtype of tensor 'rng'")


@pytest.mark.parametrize(("key", "value"), [("shape", [5, 3]), ("dtype", "int32"), ("sha256", "0" * 64)])
def test_a_tensor_that_differs_from_the_manifest_is_refused(path, key, value):
    def edit(header, manifest):
        manifest["tensors"]["b.weight"][key] = value

    refused(path, forged(path.read_bytes(), edit), f"'b.weight' has {key} .* expected")


def test_missing_and_extra_tensors_are_refused(path):
    content = path.read_bytes()
    refused(
        path, forged(content, lambda header, manifest: manifest["tensors"].pop("step")), "'step' is not in the manifest"
    )
    refused(path, forged(content, lambda header, manifest: manifest["tensors"].update(lost={})), "'lost' is missing")


def test_nan_is_refused_even_with_the_right_hash(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_require_finite", lambda *args: None)
        archive.write(path, {"w": np.array([1.0, np.nan])}, {}, kind="model")
    with pytest.raises(ModelFileError, match="'w' holds NaN"):
        archive.read(path, kind="model")


def test_newer_version_is_refused_with_both_versions(path):
    def edit(header, manifest):
        manifest["format_version"] = FORMAT_VERSION + 1

    refused(
        path,
        forged(path.read_bytes(), edit),
        f"has format {FORMAT_VERSION + 1}, .* reads up to {FORMAT_VERSION}: upgrade sprfast",
    )


def test_unknown_optional_fields_are_ignored(path):
    def edit(header, manifest):
        manifest["comment"] = "from the future"
        manifest["tensors"]["step"]["origin"] = "here"

    path.write_bytes(forged(path.read_bytes(), edit))
    assert archive.read(path, kind="checkpoint")[1] == DOCUMENT


@pytest.mark.parametrize("field", ["format_version", "kind", "document", "tensors"])
def test_missing_and_mistyped_fields_are_named(path, field):
    content = path.read_bytes()
    refused(path, forged(content, lambda header, manifest: manifest.pop(field)), f"'{field}' is missing")
    refused(
        path, forged(content, lambda header, manifest: manifest.update({field: [1]})), f"'{field}' is list, expected"
    )


def test_the_other_kind_is_refused(path):
    with pytest.raises(ModelFileError, match="is a 'checkpoint' file, expected a 'model' file"):
        archive.read(path, kind="model")


def test_foreign_files_are_refused(path):
    refused(path, b"", "cut short")
    refused(path, b"PK\3\4" + b"x" * 100, "sprfast import")
    refused(path, joined([1, 2]), "expected an object")
    refused(path, joined(b"\xff\xfe{}"), "damaged")
    refused(path, safetensors.numpy.save({"a": np.ones(1)}), "'__metadata__' is missing")
    refused(path, safetensors.numpy.save({"a": np.ones(1)}, {"format": "pt"}), "'sprfast' is missing")


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, match in [("absent", "no such file"), (".", "not a regular file"), ("fifo", "not a regular file")]:
        with pytest.raises(ModelFileError, match=match):
            archive.read(tmp_path / name, kind="model")
    with pytest.raises(ModelFileError, match="no such file"):
        archive.read("a\0b", kind="model")
    with pytest.raises(ModelFileError, match=r"cannot be read \(Input/output error"):
        archive.read("/proc/self/mem", kind="model")  # reading its beginning fails so


def test_a_file_beyond_two_gibibytes_is_refused_unread(tmp_path):
    with open(tmp_path / "sparse", "wb") as stream:
        stream.truncate(2**31 + 1)
    with pytest.raises(ModelFileError, match="2147483649 bytes, a file of a model has up to 2147483648"):
        archive.read(tmp_path / "sparse", kind="model")


def test_path_like_tensor_names_are_only_names(tmp_path):
    names = ["../../etc/x", "/abs", "nul\0name", "CON", "line\nfeed \x1b[31m"]
    folder = tmp_path / "only"
    folder.mkdir()
    archive.write(folder / "a", {name: np.ones(1) * i for i, name in enumerate(names)}, {}, kind="model")
    assert archive.read(folder / "a", kind="model")[0].keys() == set(names)
    assert [item.name for item in folder.iterdir()] == ["a"]
    without = forged((folder / "a").read_bytes(), lambda header, manifest: manifest["tensors"].pop(names[-1]))
    refused(folder / "a", without, r"'line\\nfeed \\x1b\[31m' is not in the manifest", "model")


@pytest.mark.parametrize(
    ("bad", "document", "match"),
    [
        ({"w": np.array([np.inf])}, {}, "'w' holds NaN or infinity"),
        ({"w": np.ones(1, np.complex64)}, {}, "'w' is complex64, allowed are float64"),
        ({}, {"loss": float("nan")}, "cannot be stored as JSON"),
        ({}, {"path": Path()}, "cannot be stored as JSON"),
        ({}, {"big": 10**70}, "71 digits"),
        ({}, {"keys": {2: "a", 10: "b"}}, "sha256"),
        ({"__metadata__": np.ones(1)}, {}, "__metadata__"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(path, bad, document, match):
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match=match):
        archive.write(path, bad, document, kind="checkpoint")
    assert path.read_bytes() == before


def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(path):
    """A file-size limit makes the write fail half way, as a full disk does."""
    before = path.read_bytes()
    script = f"""
import resource, signal, numpy as np
from sprfast.formats import tensors as archive
from sprfast.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    archive.write({str(path)!r}, {{"w": np.ones(100_000, np.float32)}}, {{}}, kind="checkpoint")
except InputError as error:
    raise SystemExit(f"refused: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "refused" in done.stderr, done.stderr
    assert str(path) in done.stderr
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        archive.write(tmp_path / "absent" / "a", {}, {}, kind="model")
