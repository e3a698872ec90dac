import os

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from sprfast.errors import InputError, ModelFileError
from sprfast.formats import onnx as onnx_file
from sprfast.formats.manifest import FORMAT_VERSION, signed

DOCUMENT = {"format_version": FORMAT_VERSION, "kind": onnx_file.KIND, "name": "Stück \u0001", "rate": 1e-05}


def doubling():
    """A small model: y = x + x + weights."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (4,)) for name in "xy")
    weights = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "weights")
    nodes = [helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Add", ["sum", "weights"], ["y"])]
    body = helper.make_graph(nodes, "doubling", [x], [y], [weights])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


GRAPH = doubling().SerializeToString()


@pytest.fixture
def path(tmp_path):
    onnx_file.write(tmp_path / "a.onnx", GRAPH, DOCUMENT)
    return tmp_path / "a.onnx"


def refused(path, content, match=None):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match) as caught:
        onnx_file.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def entry(text, key="sprfast"):
    """One metadata entry as another writer of protobuf would append it."""
    model = onnx.ModelProto()
    model.metadata_props.add(key=key, value=text)
    return model.SerializeToString()


def test_round_trip(path):
    content, document = onnx_file.read(path)
    assert content == GRAPH
    assert document.items() >= DOCUMENT.items()


def test_equal_content_gives_equal_bytes(path, tmp_path):
    onnx_file.write(tmp_path / "b.onnx", GRAPH, dict(reversed(DOCUMENT.items())))
    assert (tmp_path / "b.onnx").read_bytes() == path.read_bytes()


def test_others_read_the_file_as_an_ordinary_model(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.key for item in model.metadata_props] == ["sprfast"]
    del model.metadata_props[:]
    assert model == doubling()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map.keys() == {"sprfast"}
    assert session.run(None, {"x": np.ones(4, np.float32)})[0].tolist() == [2, 3, 4, 5]


def test_every_flipped_bit_is_noticed(path):
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(path, damaged)


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for length in range(len(content)):
        refused(path, content[:length])


def test_trailing_bytes_are_noticed(path):
    content = path.read_bytes()
    refused(path, content + b"\0", "not an ONNX file that `sprfast export` wrote")
    refused(path, content + content, "the graph does not match its sha256")


PIECES = st.sampled_from([b"\x72", b"\xff", b"\x08", b"\0", b"\x0a\x07sprfast", b"\x12"])


@given(content=st.one_of(st.binary(max_size=40), st.lists(PIECES).map(b"".join)))
def test_any_bytes_are_refused(tmp_path_factory, content):
    refused(tmp_path_factory.getbasetemp() / "any.onnx", content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x08" + b"\xff" * 12,  # a number without end
        b"\x08" + b"\xff" * 10**6,  # and a long one, which must not take hours
        b"\x08" + b"\xff" * 9 + b"\x7f",  # and one of 70 bits
        b"\x3a" + b"\xff" * 8 + b"\x7f",  # a graph of 2**63 - 1 bytes
        b"\x72" + b"\xff" * 8 + b"\x7f" + b"sprfast",
        b"\x72\x02\x0a\x7f",  # metadata whose key is longer than the entry
    ],
)
@pytest.mark.timeout(20)
def test_absurd_lengths_are_refused(path, content):
    refused(path, content, "not an ONNX file that `sprfast export` wrote, or cut short")


def test_a_foreign_model_is_refused(path):
    refused(path, GRAPH, "not an ONNX file that `sprfast export` wrote")
    refused(path, GRAPH + entry("{}", key="author"), "not an ONNX file that `sprfast export` wrote")
    refused(path, GRAPH + entry("not JSON"), "the header is not the JSON of a model file")
    refused(path, GRAPH + entry("[]"), "expected an object")


def test_metadata_of_another_tool_may_come_before_ours_only(tmp_path):
    model = doubling()
    model.metadata_props.add(key="author", value="another tool")
    path = tmp_path / "a.onnx"
    onnx_file.write(path, model.SerializeToString(), DOCUMENT)
    content, _ = onnx_file.read(path)
    assert content == model.SerializeToString()
    assert [item.key for item in onnx.load(path).metadata_props] == ["author", "sprfast"]
    refused(path, path.read_bytes() + entry("after", key="author"), "not an ONNX file that `sprfast export` wrote")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"format_version": FORMAT_VERSION + 1},
            f"has format {FORMAT_VERSION + 1}, .* reads up to {FORMAT_VERSION}: upgrade sprfast",
        ),
        ({"kind": "plan"}, "is a 'plan' file, expected a 'onnx' file"),
        ({"graph_sha256": "0" * 64}, "the graph does not match its sha256, the file is damaged"),
        ({"graph_sha256": None}, "'graph_sha256' is NoneType, expected str"),
    ],
)
def test_a_signed_document_is_checked(path, change, match):
    _, document = onnx_file.read(path)
    document.pop("sha256")
    refused(path, GRAPH + entry(signed({**document, **change})), match)


def test_a_graph_swapped_for_another_is_refused(path):
    content = path.read_bytes()
    other = GRAPH.replace(np.float32(3).tobytes(), np.float32(5).tobytes())
    assert len(other) == len(GRAPH)
    assert other != GRAPH
    refused(path, other + content[len(GRAPH) :], "the graph does not match its sha256")


def test_what_is_no_file_is_refused(tmp_path):
    for where, match in ((tmp_path / "absent.onnx", "no such file"), (tmp_path, "not a regular file")):
        with pytest.raises(ModelFileError, match=match):
            onnx_file.read(where)


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    content = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        onnx_file.write(path, GRAPH + b"\x12\0", DOCUMENT)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["a.onnx"]
