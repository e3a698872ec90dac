"""Damaged and hostile model files and exports: each is refused in one line that names it, or is
what was written; nothing else happens.
"""

import dataclasses
import json
import struct

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st

import sprfast
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.errors import BackendError, InputError, ModelFileError
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.formats.export import Export
from sprfast.formats.manifest import signed
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from support.fuzzing import attempt, damaged, edited, fuzzed, misspelt

KINDS = ("model", "plan", "onnx")


class Sample:
    """A good file: its content, its document, how it is put together and read."""

    def __init__(self, kind, path, work):
        self.kind, self.path, self.work = kind, path, work
        self.content = path.read_bytes()
        self.load = model_file.load if kind == "model" else export_file.read
        if kind == "onnx":
            self.graph, self.document = export_file.onnx.read(path)
            self.reach = len(self.content)
        else:
            length = struct.unpack("<Q", self.content[:8])[0]
            self.header, self.data = json.loads(self.content[8 : 8 + length]), self.content[8 + length :]
            self.document = json.loads(self.header["__metadata__"]["sprfast"])
            self.reach = 8 + length
        self.document.pop("sha256")
        self.loaded = self.load(path)

    def with_text(self, text, header=None):
        """The file with another manifest, and another header of safetensors where one is given."""
        if self.kind == "onnx":
            model = onnx.ModelProto()
            model.metadata_props.add(key="sprfast", value=text.encode("utf-8", "replace").decode())
            return self.graph + model.SerializeToString()
        header = {**(header or self.header), "__metadata__": {"sprfast": text}}
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + self.data

    @property
    def inner(self):
        """What the document says beside the tensors, which are most of it."""
        return self.document if self.kind == "onnx" else self.document["document"]

    def with_inner(self, inner):
        """The document with that replaced."""
        return {**self.document, **inner} if self.kind == "onnx" else {**self.document, "document": inner}

    def outcome(self, content):
        """What is loaded from such a file; None where it is refused as it must be."""
        self.work.write_bytes(content)
        return attempt(lambda: self.load(self.work), f"{self.work}: ", ModelFileError)


@pytest.fixture(scope="module", params=KINDS)
def sample(request, small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "good"
    if request.param == "model":
        model_file.save(
            path, dataclasses.replace(small_model, provenance={"steps": 10}, certificates=({"backend": "eager"},))
        )
    else:
        export.export(small_model, path, Request(request.param))
    return Sample(request.param, path, folder / "bad")


def same(one, other):
    """Whether two loaded files hold the same, bit for bit."""
    if isinstance(one, Model):
        fields = [field.name for field in dataclasses.fields(Model) if field.name != "weights"]
        return all(getattr(one, name) == getattr(other, name) for name in fields) and one.sha256 == other.sha256
    assert isinstance(one, Export)
    if one.metadata.to_json() != other.metadata.to_json() or one.graph != other.graph:
        return False
    arrays, others = (each.folded.to_arrays() if each.folded else {} for each in (one, other))
    return arrays.keys() == others.keys() and all(map(np.array_equal, arrays.values(), others.values()))


def is_valid(loaded):
    """Whether what was loaded is whole: its parts are made again from what they write."""
    parts = loaded if isinstance(loaded, Model) else loaded.metadata
    for name in ("network", "scoring_mode", "preprocessing"):
        part = getattr(parts, name)
        assert type(part).from_json(json.loads(json.dumps(part.to_json(), allow_nan=False))) == part
    assert 0 <= parts.noise_seed < 2**32
    return True


@fuzzed(60, data=st.data())
def test_a_damaged_file_is_refused_or_unchanged(sample, data):
    loaded = sample.outcome(data.draw(damaged(sample.content, sample.reach)))
    assert loaded is None or same(loaded, sample.loaded)


@fuzzed(40, data=st.data())
def test_a_document_that_is_not_signed_anew_is_refused(sample, data):
    text = data.draw(st.one_of(edited(sample.document).map(json.dumps), misspelt(sample.document)))
    assert sample.outcome(sample.with_text(text)) is None


@fuzzed(120, data=st.data())
def test_a_document_that_is_signed_anew_is_refused_or_valid(sample, data):
    document = data.draw(edited(sample.document) | edited(sample.inner).map(sample.with_inner))
    try:
        text = signed(document) if isinstance(document, dict) else json.dumps(document)
    except (ValueError, RecursionError):  # NaN cannot be signed
        text = json.dumps(document)
    loaded = sample.outcome(sample.with_text(text))
    assert loaded is None or is_valid(loaded)


@fuzzed(60, data=st.data())
def test_another_header_of_safetensors_is_refused_or_unchanged(sample, data):
    if sample.kind == "onnx":
        pytest.skip("an ONNX file has none")
    few = {name: sample.header[name] for name in ("__metadata__", *sorted(sample.header)[1:4])}
    few = data.draw(edited(few))
    header = {**sample.header, **few} if isinstance(few, dict) else sample.header
    text = signed(sample.document)
    loaded = sample.outcome(sample.with_text(text, header))
    assert loaded is None or same(loaded, sample.loaded)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.fuzz)])
def test_a_document_of_any_depth_is_refused_or_valid(sample, step):
    """Reading and writing JSON do not reach the limit of recursion at the same depth."""
    for depth in range(900, 1000, step):
        text = json.dumps(sample.document)[:-1] + ',"deep":' + "[" * depth + "]" * depth + ',"sha256":""}'
        assert sample.outcome(sample.with_text(text)) is None


@pytest.mark.timeout(60)
def test_a_header_of_many_names_and_a_duplicate_is_refused_at_once(tmp_path):
    names = ",".join(f'"{number}":0' for number in range(300_000))
    head = f'{{{names},"299999":0}}'.encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(ModelFileError, match="duplicate key '299999'"):
        model_file.load(tmp_path / "a")


@fuzzed(25, data=st.data())
def test_an_export_of_other_metadata_is_refused_or_scores(sample, data):
    """What the file's own checks let through is for the runner's: the probe, above all."""
    if sample.kind == "model" or library.unavailable() is not None:
        pytest.skip("not an export, or no kernels here")
    inner = data.draw(edited(sample.inner))
    try:
        text = signed(sample.with_inner(inner))
    except (ValueError, RecursionError):
        return
    if sample.kind == "onnx" and inner.get("batch") not in (None, 1):
        return  # a large one only takes long
    sample.work.write_bytes(sample.with_text(text))
    opened = attempt(lambda: sprfast.load(sample.work), "", ModelFileError, InputError, BackendError)
    if opened is not None:
        result = opened.predict(np.zeros((32, 32), np.uint8))
        assert np.isfinite(result.pred_score) == (result.error_map is not None)
