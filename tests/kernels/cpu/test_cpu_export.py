"""The engine's own reader of exports takes what Python takes, with the same values, and refuses
what Python refuses.
"""

import dataclasses
import json
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

from sprfast.config import Level, Preprocessing, Schedule
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.formats import tensors
from sprfast.formats.manifest import FORMAT_VERSION, signed
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold
from support.export_reader import CORPUS, Opened, assert_same, headed, write_narrow
from support.machine import in_this_process
from support.scoring_mode_cases import QUICK, field

MODES = {
    "published": ScoringMode(threshold=threshold.manual(0.023)),
    "single": ScoringMode(Schedule((Level(1e-3, 1),), noise="none"), threshold=threshold.manual(1.0)),
    "field": ScoringMode(
        QUICK, field(), threshold.calibrate(np.linspace(0.8, 1.0, 20), 0.1), MapThreshold(0.01, 20, 0.1)
    ),
    "window": ScoringMode(QUICK, window=4096, tile=32),
    "uncalibrated": ScoringMode(Schedule((Level(0.1, 4, 0.5), Level(1e-3, 2)), noise="antithetic")),
}


@pytest.mark.parametrize("size", [None, (32, 32)], ids=["any-size", "one-size"])
@pytest.mark.parametrize("mode", MODES)
def test_every_value_is_read_bit_for_bit(reader, sample, tmp_path, mode, size):
    with reader.narrow():
        metadata = dataclasses.replace(
            export_file.read(sample.path).metadata,
            scoring_mode=MODES[mode],
            size=size,
            preprocessing=Preprocessing(32, "stretch", 12, "composite", "ignore", "first", 2**31),
            noise_seed=2**32 - 1,
        )
        write_narrow(tmp_path / "a.plan", metadata)
        with reader.opened(tmp_path / "a.plan") as opened:
            assert isinstance(opened, Opened), opened
            assert_same(opened, export_file.read(tmp_path / "a.plan"))


def test_an_export_as_it_was_written_is_read(reader, good):
    with reader.opened(good) as opened:
        assert isinstance(opened, Opened), opened
        assert_same(opened, export_file.read(good))


def test_format_1_is_read(both, sample):
    """It had neither error field nor threshold of maps, and a field `antithetic` in the
    schedule.
    """

    def edit(header, manifest, data):
        manifest["format_version"] = 1
        document = manifest["document"]
        del document["field"], document["map_threshold"], document["schedule"]["noise"]
        document["schedule"]["antithetic"] = True

    assert both(sample.forged(edit)) is None
    assert both(sample.with_document(schedule=sample.document["schedule"] | {"antithetic": False})) is None


def test_a_link_is_followed(reader, good, tmp_path):
    (tmp_path / "link").symlink_to(good)
    assert reader.refusal(tmp_path / "link") is None


def test_what_is_not_a_file_is_refused(reader, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, why in [("absent", "no such file"), (".", "not a regular file"), ("fifo", "not a regular file")]:
        assert why in reader.refusal(tmp_path / name)
    assert "cannot be read" in reader.refusal(tmp_path / "fifo" / "below")


def test_a_file_beyond_two_gibibytes_is_refused_unread(reader, tmp_path):
    with open(tmp_path / "sparse", "wb") as stream:
        stream.truncate(2**31 + 1)
    assert "2147483649 bytes, an export has up to 2147483648" in reader.refusal(tmp_path / "sparse")


def test_other_files_of_the_package_are_called_by_their_name(reader, small_model, tmp_path):
    model_file.save(tmp_path / "a", small_model)
    assert "is a model file, not an export" in reader.refusal(tmp_path / "a")
    tensors.write(tmp_path / "a", {"a": np.ones(1)}, {}, kind="checkpoint")
    assert "is a checkpoint of a training" in reader.refusal(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\x08\x08\x12\x07sprfast")
    assert "is an ONNX file" in reader.refusal(tmp_path / "a")


def test_foreign_and_short_files_are_refused(both):
    for content in (b"", b"\x02", b"PK\3\4" + b"x" * 100, struct.pack("<Q", 2**63) + b"{}", b"\x02" + b"\0" * 7 + b"{"):
        assert "not a safetensors file, or cut short" in both(content)
    huge = 16 * 2**20 + 1
    assert "allowed up to" in both(struct.pack("<Q", huge) + b" " * huge)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "the header is a list, expected an object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"\xc0\x80":1}', "not UTF-8"),
        ("{}", "'__metadata__' is missing"),
        ('{"__metadata__":1}', "'__metadata__' is an integer, expected an object"),
        ('{"__metadata__":{"format":"pt"}}', "'sprfast' is missing"),
        ('{"__metadata__":{"sprfast":1}}', "'sprfast' is an integer"),
        ('{"__metadata__":{"sprfast":"{}"}}', "'kind' is missing"),
        ('{"__metadata__":{"sprfast":"[]"}}', "not an object"),
        ('{"__metadata__":{"sprfast":"\u00e9"}}', "the manifest is damaged"),
        ('{"__metadata__":{"sprfast":"{}"},"a":1,"a":1}', "duplicate key 'a'"),
        ('{"a\\u000ab":1,"a\\nb":1}', "duplicate key 'a\\x0ab'"),
        ('{"a":' + "[" * 10**6, "nested too deeply"),
        ('{"__metadata__":{"sprfast":"' + '{\\"document\\":' * 10**5 + '"}}', "nested too deeply"),
        ('{"__metadata__":{"sprfast":"{\\"format_version\\":NaN}"}}', "expected a value"),
        ('{"__metadata__":{"sprfast":"{\\"format_version\\":1e999}"}}', "not finite"),
        ('{"__metadata__":{"sprfast":"{\\"format_version\\":' + "9" * 65 + '}"}}', "more than 64 digits"),
    ],
)
def test_a_damaged_header_is_refused(both, text, why):
    assert why in both(headed(text))


@pytest.mark.timeout(60)
def test_a_header_of_many_names_and_a_duplicate_is_refused_at_once(both):
    names = ",".join(f'"{number}":0' for number in range(300_000))
    assert "duplicate key '299999'" in both(headed(f'{{{names},"299999":0}}'))


def test_what_fuzzing_begins_with_is_refused_unless_it_is_whole(both):
    paths = sorted(CORPUS.iterdir())
    assert [path.name for path in paths if both(path.read_bytes()) is None] == ["whole-format-1.plan", "whole.plan"]


def test_flipped_bits_are_noticed(both, sample):
    pick = random.Random(0).sample
    reach = 8 * sample.reach
    for bit in [*range(64), *pick(range(64, reach), 100), *pick(range(reach, 8 * len(sample.content)), 8)]:
        content = bytearray(sample.content)
        content[bit // 8] ^= 1 << bit % 8
        assert both(content) is not None


def test_truncations_and_trailing_bytes_are_noticed(both, sample):
    lengths = [
        *range(0, 16, 3),
        *range(16, sample.reach, 9001),
        sample.reach,
        sample.reach + 1,
        len(sample.content) - 1,
    ]
    for length in lengths:
        assert both(sample.content[:length]) is not None
    assert "damaged" in both(sample.content + b"\0")


def test_another_spelling_of_the_manifest_is_noticed(reader, sample):
    text = signed(sample.manifest)
    body = text.replace(json.loads(text)["sha256"], "")
    assert text.count("0.0001") == 1
    for other in (
        text.replace("0.0001", "1E-04"),
        text.replace(":", ": ", 1),
        f"{text} ",
        text.replace("plan", "pl\\u0061n"),
        text.replace('"sha256"', '"sha25\\u0036"'),
        body,
        text.replace('"sha256":"' + json.loads(text)["sha256"] + '",', ""),
    ):
        sample.work.write_bytes(sample.joined(other))
        assert "sha256" in (why := reader.refusal(sample.work)) or "the manifest is damaged" in why


def test_a_newer_format_is_refused_with_both_versions(both, sample):
    for version, why in ((FORMAT_VERSION + 1, "upgrade sprfast"), (0, "has format 0"), (2**63, f"has format {2**63}")):
        assert why in both(sample.forged(lambda header, manifest, data, v=version: manifest.update(format_version=v)))


@pytest.mark.parametrize("name", ["format_version", "kind", "document", "tensors"])
def test_missing_and_mistyped_fields_of_the_manifest_are_named(both, sample, name):
    assert f"'{name}' is missing" in both(sample.forged(lambda header, manifest, data: manifest.pop(name)))
    assert f"'{name}' is a list, expected" in both(
        sample.forged(lambda header, manifest, data: manifest.update({name: [1]}))
    )


def test_what_is_not_known_is_ignored(both, sample):
    def edit(header, manifest, data):
        manifest |= {"comment": "\u00e9\ud800", "zzz": [{}]}
        manifest["document"] |= {"trained_on": "", "another": 1.5}
        manifest["tensors"]["std"]["origin"] = "here"
        header["std"]["origin"] = [None]

    assert both(sample.forged(edit)) is None


def test_the_spelling_of_the_manifests_shapes_is_as_in_python(both, sample):
    def edit(header, manifest, data):
        manifest["tensors"]["head_weight"]["shape"] = [3.0, True]

    assert both(sample.forged(edit)) is None

    def size(header, manifest, data):
        header["head_weight"]["shape"] = [3.0, 1]

    assert "shape" in both(sample.forged(size))


OPENING = """
import ctypes, resource, sys
def of_this_process(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
library = ctypes.CDLL(sys.argv[1])
library.open_export.restype = ctypes.c_void_p
message = ctypes.create_string_buffer(999)
peak = of_this_process("VmHWM")
if spare := int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_AS, [of_this_process("VmSize") + spare] * 2)
opened = library.open_export(sys.argv[2].encode(), message, 999)
print(of_this_process("VmHWM") - peak if opened else message.value.decode())
"""


def opened_alone(reader, path, spare=0):
    """What a process prints that opens a file, with so much memory to spare; 0: any."""
    command = [sys.executable, "-c", OPENING, reader.path, path, spare]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.process
@in_this_process
def test_a_file_is_in_memory_once(reader, good):
    """What is kept of it; beside it, the header and a little."""
    assert int(opened_alone(reader, good)) < 1.1 * good.stat().st_size


@pytest.mark.process
@in_this_process
def test_too_little_memory_is_said(reader, good):
    assert opened_alone(reader, good, spare=good.stat().st_size // 2) == "out of memory\n"
