"""JSON, SHA-256 and base64 as the engine reads them."""

import base64
import hashlib
import json
import random
import re
import struct

import pytest
from hypothesis import strategies as st

from sprfast.errors import ModelFileError
from sprfast.formats.manifest import parsed
from support.fuzzing import TEXTS, damaged, fuzzed


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
            assert reader.is_json(text, depth)
            assert not reader.is_json(text, depth - 1)


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
