"""The engine's own reader of exports: it takes what Python takes, with the same values, and refuses
what Python refuses.
"""

import base64
import copy
import dataclasses
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import strategies as st

from sprfast.config import Level, Preprocessing, Schedule
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.errors import ModelFileError
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.formats import tensors
from sprfast.formats.manifest import FORMAT_VERSION, parsed, signed
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold
from support.export_reader import Opened, Reader, assert_same, write_narrow
from support.fuzzing import TEXTS, damaged, edited, fuzzed, misspelt
from support.scoring_mode_cases import QUICK, field

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))

MODES = {
    "published": ScoringMode(threshold=threshold.manual(0.023)),
    "single": ScoringMode(Schedule((Level(1e-3, 1),), noise="none"), threshold=threshold.manual(1.0)),
    "field": ScoringMode(
        QUICK, field(), threshold.calibrate(np.linspace(0.8, 1.0, 20), 0.1), MapThreshold(0.01, 20, 0.1)
    ),
    "uncalibrated": ScoringMode(Schedule((Level(0.1, 4, 0.5), Level(1e-3, 2)), noise="antithetic")),
}


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """The C++ reader."""
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def good(small_model, tmp_path_factory):
    """A plan as `sprfast export` writes it."""
    path = tmp_path_factory.mktemp("plan") / "good.plan"
    export.export(small_model, path, Request("plan"))
    return path


class Sample:
    """The parts of a plan, and how they are put together again."""

    def __init__(self, path, work):
        self.path, self.work = path, work
        self.content = path.read_bytes()
        self.reach = 8 + struct.unpack("<Q", self.content[:8])[0]
        self.header, self.data = json.loads(self.content[8 : self.reach]), self.content[self.reach :]
        self.manifest = json.loads(self.header["__metadata__"]["sprfast"])
        del self.manifest["sha256"]

    @property
    def document(self):
        """What the manifest says beside the tensors."""
        return self.manifest["document"]

    def joined(self, text, header=None, data=None):
        """A file with this manifest."""
        header = {**(self.header if header is None else header), "__metadata__": {"sprfast": text}}
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + (self.data if data is None else data)

    def forged(self, edit):
        """The file with header, manifest and data edited and signed anew, as a careful author of a
        bad file would.
        """
        header, manifest, data = copy.deepcopy(self.header), copy.deepcopy(self.manifest), bytearray(self.data)
        edit(header, manifest, data)
        del header["__metadata__"]
        return self.joined(signed(manifest), header, bytes(data))

    def with_document(self, **changes):
        """The file with other metadata."""
        return self.forged(lambda header, manifest, data: manifest["document"].update(changes))


@pytest.fixture(scope="module")
def sample(good, tmp_path_factory):
    """A plan of a network that is narrower than it says, so that its file is small."""
    folder = tmp_path_factory.mktemp("damaged")
    write_narrow(folder / "good.plan", export_file.read(good).metadata)
    return Sample(folder / "good.plan", folder / "bad.plan")


@pytest.fixture
def both(reader, sample):
    """What both readers make of a content: they must agree. None where it is accepted, else the C++
    reader's reason.
    """

    def outcome(content, same=False):
        sample.work.write_bytes(content)
        reason, read = reader.refusal(sample.work), None
        try:
            read = export_file.read(sample.work)
        except ModelFileError as error:
            python_reason = str(error)
        if read is None:
            assert reason is not None, f"only Python refuses it: {python_reason}"
            return reason
        with reader.opened(sample.work) as opened:
            assert isinstance(opened, Opened), f"only C++ refuses it: {reason}"
            assert_same(opened, read)
        assert not same or read.metadata.to_json() == export_file.read(sample.path).metadata.to_json()
        return None

    with reader.narrow():
        yield outcome


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


def headed(text):
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(content)) + content


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
        manifest["tensors"]["head_weight"]["shape"] = [3.0, 32]

    assert both(sample.forged(edit)) is None

    def size(header, manifest, data):
        header["head_weight"]["shape"] = [3.0, 32]

    assert "shape" in both(sample.forged(size))


NAME = "up3.first.weight"


def change(place, key, value):
    def edit(header, manifest, data):
        (header if place == "header" else manifest["tensors"])[NAME][key] = value

    return edit


def swap(header, manifest, data):
    header["std"]["data_offsets"], header["scale"]["data_offsets"] = (
        header["scale"]["data_offsets"],
        header["std"]["data_offsets"],
    )


def transposed(header, manifest, data):
    for each in (header[NAME], manifest["tensors"][NAME]):
        each["shape"] = each["shape"][::-1]


def halved(header, manifest, data):
    header[NAME]["dtype"], manifest["tensors"][NAME]["dtype"] = "I32", "int32"


def overlapping(header, manifest, data):
    header[NAME]["data_offsets"] = [each - 4 for each in header[NAME]["data_offsets"]]


def reversed_offsets(header, manifest, data):
    header[NAME]["data_offsets"].reverse()


def missing(header, manifest, data):
    del header[NAME], manifest["tensors"][NAME]


def unknown(header, manifest, data):
    end = len(data)
    data += b"\0\0\0\0"
    header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    digest = hashlib.sha256(b"\0\0\0\0").hexdigest()
    manifest["tensors"]["extra"] = {"shape": [1], "dtype": "float32", "sha256": digest}


def hole(header, manifest, data):
    data += b"\0\0\0\0"


def number(value):
    def edit(header, manifest, data):
        begin, end = header[NAME]["data_offsets"]
        data[begin : begin + 4] = struct.pack("<f", value)
        manifest["tensors"][NAME]["sha256"] = hashlib.sha256(data[begin:end]).hexdigest()

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change("header", "dtype", "F16"), "dtype"),
        (change("header", "dtype", "F8_E8M0"), "dtype"),
        (change("header", "dtype", {"F32": None}), "'dtype' is an object"),
        (change("header", "shape", [2**62, 2**62]), "shape"),
        (change("header", "shape", []), "shape"),
        (change("header", "data_offsets", [0]), "data_offsets"),
        (change("header", "data_offsets", [-4, 0]), "data_offsets"),
        (change("header", "data_offsets", [0, 2**64]), "length"),
        (change("header", "data_offsets", [0.0, 4]), "data_offsets"),
        (change("manifest", "dtype", "int32"), "dtype"),
        (change("manifest", "shape", [1]), "shape"),
        (change("manifest", "shape", None), "'shape' is null"),
        (change("manifest", "sha256", "0" * 64), "sha256"),
        (change("manifest", "sha256", None), "'sha256' is null"),
        (lambda header, manifest, data: manifest["tensors"].update({NAME: {}}), "'dtype' is missing"),
        (lambda header, manifest, data: manifest["tensors"].pop(NAME), f"'{NAME}' is missing"),
        (lambda header, manifest, data: manifest["tensors"].update(lost={}), "'lost' is not one of an export"),
        (lambda header, manifest, data: header.update(a=[]), "'a' is not one of an export"),
        (swap, "sha256"),
        (transposed, "shape"),
        (halved, "dtype"),
        (overlapping, "does not follow"),
        (reversed_offsets, "length"),
        (missing, f"'{NAME}' is missing"),
        (unknown, "'extra' is not one of an export"),
        (hole, "damaged"),
        (number(np.nan), "holds NaN or infinity"),
        (number(-np.inf), "holds NaN or infinity"),
        (number(-0.0), None),
    ],
)
def test_tensors_that_are_not_an_exports_are_refused(both, sample, edit, why):
    found = both(sample.forged(edit))
    assert found is None if why is None else why in found


def encoded(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


FIELD = field(32, 32).to_json()
CALIBRATED = threshold.calibrate(np.linspace(0.8, 1.0, 20), 0.1).to_json()
MANUAL = {"value": 0.5, "source": "manual"}
MAP_THRESHOLD = {"value": 0.5, "samples": 3, "false_pixel_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("network", [None, {"base_width": 33}, {"base_width": 64.0}, {"base_width": 1056}, {"embedding_dim": 7}]),
        (
            "schedule",
            [
                None,
                {"levels": []},
                {"levels": [{}] * 65},
                {"levels": {}},
                {"levels": [{"draws": 0}]},
                {"levels": [{"draws": True}]},
                {"levels": [{"t": 0.9e-8}]},
                {"levels": [{"t": "1"}]},
                {"levels": [{"weight": 0}]},
                {"levels": [{"weight": 1e308}] * 2},
                {"levels": [{"draws": 1}], "noise": "loud"},
                {"noise": "antithetic"},
                {"antithetic": "yes"},
                {"noise": "none"},
                {"noise": None},
            ],
        ),
        (
            "preprocessing",
            [
                "fit",
                {"size": 15},
                {"size": 4097},
                {"size_policy": "crop"},
                {"bit_depth": 7},
                {"alpha": 1},
                {"orientation": "up"},
                {"frames": "all"},
                {"max_pixels": 2**31 + 1},
            ],
        ),
        ("noise_seed", [None, -1, 2**32, 2**64, 1.0, True, "0"]),
        (
            "threshold",
            [
                0.5,
                {"value": 0.5},
                {"source": "manual"},
                {"value": "high", "source": "manual"},
                {"value": 0.5, "source": "guessed"},
                {"value": 0.5, "source": "calibrated"},
                MANUAL | {"samples": 1},
                MANUAL | {"rank": 1},
                MANUAL | {"rank": 0.0},
                MANUAL | {"false_reject_rate": 1e-9},
                MANUAL | {"scores": [0.1]},
                CALIBRATED | {"samples": 0},
                CALIBRATED | {"samples": 20.0},
                CALIBRATED | {"false_reject_rate": 1},
                CALIBRATED | {"rank": 0},
                CALIBRATED | {"rank": 21},
                CALIBRATED | {"samples": 10**30, "rank": 10**30 + 1, "scores": []},
                CALIBRATED | {"scores": [0.5]},
                CALIBRATED | {"scores": list(range(20, 0, -1))},
                CALIBRATED | {"scores": [None] * 20},
                CALIBRATED | {"scores": "none"},
            ],
        ),
        (
            "field",
            [
                0.5,
                [],
                {},
                FIELD | {"samples": 0},
                FIELD | {"samples": 1.0},
                FIELD | {"shape": [32, 31]},
                FIELD | {"shape": [32.0, 32]},
                FIELD | {"shape": [True, 1024]},
                FIELD | {"shape": [-1, 32]},
                FIELD | {"shape": [2**70, 32]},
                FIELD | {"shape": "ab"},
                FIELD | {"shape": [1025, 1], "expected": encoded(np.ones(1025))},
                FIELD | {"shape": [0, 0], "expected": ""},
                FIELD | {"expected": "?"},
                FIELD | {"expected": None},
                FIELD | {"expected": encoded(np.zeros(1024))},
                FIELD | {"expected": encoded(np.full(1024, np.inf))},
            ],
        ),
        (
            "map_threshold",
            [
                0.5,
                {},
                MAP_THRESHOLD | {"samples": 0},
                MAP_THRESHOLD | {"false_pixel_rate": 1.0},
                MAP_THRESHOLD | {"false_pixel_rate": 0},
                MAP_THRESHOLD | {"value": None},
            ],
        ),
        ("model_sha256", [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"]),
        ("precision", [None, "float64", 16, ["float16"], {}]),
        ("quantization", ["int4", 8, False, ["int8"]]),
        ("size", [16, "16", [16], [16, 20, 3], [15, 20], [16, 2**16 + 1], [16.0, 20], [True, 20], {"a": 16}]),
        ("batch", [0, 4097, 1.0, True, "1", [1]]),
        ("probe", [None, [], 1.0]),
        ("certificates", [None, {}, "none", [None], [["by"]]]),
        ("trained_on", [None, 1, []]),
    ],
)
def test_a_wrong_field_is_named(both, sample, name, values):
    for value in values:
        assert f": {name}" in both(sample.with_document(**{name: value})).replace(f"field '{name}", f": {name}")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("network", [{"base_width": 32}, {"base_width": 32, "embedding_dim": 4096, "more": []}]),
        ("schedule", [{"levels": [{"t": 1, "draws": 2, "weight": 3}]}, {"levels": [{"draws": 2}], "antithetic": 0.0}]),
        ("preprocessing", [{}, {"max_pixels": 1}]),
        ("noise_seed", [0, 2**32 - 1]),
        (
            "threshold",
            [
                None,
                MANUAL,
                MANUAL | {"value": 10**63, "scores": []},
                MANUAL | {"value": 5e-324, "false_reject_rate": -0.0},
                CALIBRATED | {"scores": []},
                CALIBRATED | {"scores": [1] * 20},
                CALIBRATED | {"samples": 10**30, "rank": 10**30, "scores": [0.25] * 1024},
            ],
        ),
        ("field", [None, FIELD, FIELD | {"shape": [1, 1024], "samples": 10**30}]),
        ("map_threshold", [None, MAP_THRESHOLD]),
        ("precision", ["float16", "bfloat16"]),
        ("quantization", ["int8"]),
        ("size", [None, [32, 32]]),
        ("batch", [1, 4096]),
        ("certificates", [[], [{"deep": [[[{}]]]}]]),
        ("trained_on", ["?"]),
    ],
)
def test_every_allowed_field_is_taken(both, sample, name, values):
    for value in values:
        assert both(sample.with_document(**{name: value})) is None, value


def test_the_probe_is_of_the_size_that_is_exported(both, sample):
    assert "probe: 32x32 pixels (height x width), the export takes 16x20 only" in both(
        sample.with_document(size=[16, 20])
    )


def test_a_missing_field_is_named(both, sample):
    for name in sample.document:
        found = both(sample.forged(lambda header, manifest, data, name=name: manifest["document"].pop(name)))
        assert found is None if name in ("field", "map_threshold", "trained_on") else f"'{name}' is missing" in found


MAP = np.random.default_rng(0).random((16, 20), np.float32) + 0.5
PROBE = {"shape": [16, 20], "error_map": encoded(MAP), "tolerance": 0.1}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shape", [None, 16, [16], [15, 20], [20, 16.0], [16, 21], [20, 20], [2**16, 2**16], [16, 2**16 + 1]]),
        (
            "error_map",
            [
                None,
                7,
                "",
                "?",
                "\u00e9",
                encoded(MAP)[:-4],
                encoded(MAP[:-1]),
                encoded(MAP * np.nan),
                encoded(MAP * -0.0),
            ],
        ),
        ("tolerance", [None, 0, 1, 0.0, 1.0, -0.1, "0.1", True]),
    ],
)
def test_a_wrong_field_of_the_probe_is_named(both, sample, name, values):
    for value in values:
        assert "probe." in both(sample.with_document(probe=PROBE | {name: value}))
    given = {key: value for key, value in PROBE.items() if key != name}
    assert f"'probe.{name}' is missing" in both(sample.with_document(probe=given))


@fuzzed(240, data=st.data())
def test_both_readers_agree_on_a_damaged_file(both, sample, data):
    both(data.draw(damaged(sample.content, sample.reach)), same=True)


@fuzzed(240, data=st.data())
def test_both_readers_agree_on_a_document_that_is_not_signed_anew(both, sample, data):
    text = data.draw(st.one_of(edited(sample.manifest).map(json.dumps), misspelt(sample.manifest)))
    both(sample.joined(text.encode("utf-8", "replace").decode()))


@fuzzed(600, data=st.data())
def test_both_readers_agree_on_a_document_that_is_signed_anew(both, sample, data):
    inner = edited(sample.document).map(lambda document: {**sample.manifest, "document": document})
    document = data.draw(inner | edited(sample.manifest))
    try:
        text = signed(document)
    except (ValueError, RecursionError):  # NaN cannot be signed
        text = json.dumps(document)
    both(sample.joined(text))


@fuzzed(240, data=st.data())
def test_both_readers_agree_on_another_header(both, sample, data):
    few = {name: sample.header[name] for name in sorted(sample.header)[1:4]}
    few = data.draw(edited(few))
    both(sample.joined(signed(sample.manifest), {**sample.header, **few} if isinstance(few, dict) else {}), same=True)


def described(value):
    """A value of JSON in the form of the C++ side's answer."""
    if isinstance(value, str):
        return "s" + value.encode("utf-8", "surrogatepass").hex()
    if isinstance(value, list):
        return "[" + "".join(f" {described(item)}" for item in value) + "]"
    if isinstance(value, dict):
        return "{" + "".join(f" {described(name)} {described(item)}" for name, item in value.items()) + "}"
    if isinstance(value, float):
        return "n" + struct.pack(">d", value).hex()
    return json.dumps(value)


def python_reads(content):
    """The same of what Python reads, None where it refuses it."""
    try:
        found = described(parsed("", content.decode()))
    except (ModelFileError, UnicodeDecodeError):
        return None
    return None if re.search("eda[0-9a-f]|edb[0-9a-f]", found) else found  # halves of pairs


FINITE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**62), 10**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@fuzzed(600, value=FINITE, plain=st.booleans())
def test_json_is_read_as_in_python(reader, value, plain):
    text = json.dumps(value, ensure_ascii=plain, indent=1 if plain else None)
    content = text.encode("utf-8", "replace")
    if (expected := python_reads(b'{"a":' + content + b"}")) is not None:
        assert reader.json(content) == (True, expected[6:-1])
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert reader.json(canonical, canonical=True) == (True, described(json.loads(canonical)))


@fuzzed(1200, data=st.data())
def test_damaged_json_is_refused_as_in_python(reader, data):
    content = json.dumps({"a": data.draw(FINITE)}, ensure_ascii=False).encode("utf-8", "replace")
    content = data.draw(damaged(content, len(content)))
    expected = python_reads(content)
    accepted, found = reader.json(content)
    if accepted and not content.strip().startswith(b"{"):
        return  # where Python wants an object
    assert (found if accepted else None) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "nul",
            "tru",
            "True",
            "NaN",
            "Infinity",
            "-Infinity",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1e",
            "1e+",
        ),
        *("1.e5", "0x10", "1 2", "[1,]", "[,1]", "[1", "]", "[1}", '{"a":1,}', '{"a"}', "{a:1}", "{1:1}", '{"a":}'),
        *(
            "'a'",
            '"a',
            '"\\x"',
            '"\\u12"',
            '"\\u12g4"',
            '"\\ud800"',
            '"\\udc00\\ud800"',
            '"\\ud800\\u0041"',
            '"\t"',
            '"\0"',
        ),
        *("\ufeff1", "1\0", "null null", "1e309", "-1e309", "9" * 65, "-" + "9" * 64, '{"a":1,"\\u0061":2}', "//1\n2"),
        *("[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101),
    ],
)
def test_what_is_not_json_is_refused(reader, text):
    accepted, why = reader.json(text)
    assert not accepted
    assert re.fullmatch("the text is damaged \\(.* at character \\d+\\)", why)


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xe0\x9f\xbf", b"\xe2\x82", b"\xed\xa0\x80", b"\xed\xbf\xbf"),
        *(b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xf0\x9f\x98", b"\xe2\x28\xa1"),
    ],
)
def test_what_is_not_utf_8_is_refused(reader, content):
    assert reader.json(b'"' + content + b'"') == (False, "the text is damaged (not UTF-8 at character 1)")


@pytest.mark.parametrize("text", ["\u00e9\u20ac\U0001f600\x7f", "\ud7ff\ue000\U0010ffff", '/\\"\b\f\n\r\t'])
def test_strings_are_utf_8(reader, text):
    for given in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        assert reader.json(given) == (True, described(text))
    assert reader.json('"\\/\\uD83d\\uDE00"') == (True, described("/\U0001f600"))


@pytest.mark.parametrize("text", ['{"b":1,"a":2}', '{"a":1, "b":2}', "[1, 2]", " 1", "1\n", '"\u00e9"', '"\x7f"'])
def test_a_canonical_text_has_one_spelling(reader, text):
    assert reader.json(text)[0]
    assert not reader.json(text, canonical=True)[0]


def test_half_of_a_pair_is_part_of_a_canonical_text(reader):
    assert reader.json('"\\ud800x"', canonical=True) == (True, described("\ud800x"))


def test_depth_is_limited_and_takes_no_stack(reader):
    for depth in (1, 2, 100_000):
        for text in ("[" * depth + "]" * depth, '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)):
            assert reader.json(text, depth=depth)[0]
            assert "nested too deeply" in reader.json(text, depth=depth - 1)[1]


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 1000, 10**6])
@pytest.mark.parametrize("piece", [7, 64, 2**30])
def test_sha256(reader, size, piece):
    content = random.Random(size).randbytes(size)
    assert reader.sha256(content, piece) == hashlib.sha256(content).hexdigest()


@fuzzed(600, content=st.binary(max_size=40))
def test_base64_and_back(reader, content):
    assert reader.base64(base64.b64encode(content)) == content


@fuzzed(600, text=st.text("AQz/+9=-\n", max_size=9))
def test_what_is_not_base64_is_refused(reader, text):
    """Python lets padding behind a whole group pass."""
    found = reader.base64(text.encode())
    try:
        expected = base64.b64decode(text, validate=True) if len(text) % 4 == 0 else None
    except ValueError:
        expected = None
    assert found == expected


MEASURE = """
import ctypes, sys
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
library = ctypes.CDLL(sys.argv[1])
library.open_export.restype = ctypes.c_void_p
before = peak()
assert library.open_export(sys.argv[2].encode(), ctypes.create_string_buffer(999), 999)
print(peak() - before)
"""


@pytest.mark.process
def test_a_file_is_in_memory_once(reader, good):
    """What is kept of it; beside it, the header and a little."""
    command = [sys.executable, "-c", MEASURE, reader.path, good]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.1 * good.stat().st_size
