"""What fuzz tests share: ways to damage bytes and JSON documents, and what every refusal must look
like.
"""

import copy
import functools
import inspect
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.integers(-(10**70), 10**70),
    st.floats(),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 1e-320, 1e308, -0.0]),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\ud800", "a\nb", "../x", "nul\0", "float16", "cpu", "fit", "onnx", "0" * 64, "A" * 5000]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def fuzzed(examples, **strategies):
    """Run a test on a twelfth of so many inputs; on all of them under the marker. They are the same
    in every run.
    """

    def decorate(test):
        @pytest.mark.parametrize("examples", [examples // 12, pytest.param(examples, marks=pytest.mark.fuzz)])
        @functools.wraps(test)
        def run(examples, **fixtures):
            @settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
            @given(**strategies)
            def once(**drawn):
                test(**fixtures, **drawn)

            once()

        names = ["examples", *(name for name in inspect.signature(test).parameters if name not in strategies)]
        run.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )
        return run

    return decorate


def attempt(call, name, *kinds):
    """What a call returns; None where it is refused as it must be: with one of these errors, in one
    line that begins with `name`.
    """
    try:
        return call()
    except kinds as error:
        message = str(error)
    assert message.startswith(name)
    assert len(message.splitlines()) == 1
    return None


@st.composite
def damaged(draw, content, reach):
    """`content` after a few accidents: bits flipped, bytes overwritten, cut, doubled, put in, the
    end lost; most of them before `reach`.
    """
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        end = len(result) if draw(st.integers(0, 4)) == 0 else min(reach, len(result))
        at = draw(st.integers(0, max(0, end - 1)))
        length = draw(st.sampled_from([1, 2, 4, 8, 37, 500]))
        accident = draw(st.sampled_from(["flip", "set", "cut", "double", "insert", "end"]))
        if accident == "flip" and result:
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif accident == "set":
            new = draw(
                st.binary(min_size=1, max_size=8)
                | st.sampled_from([b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0\0\0\x80"])
            )
            result[at : at + len(new)] = new
        elif accident == "cut":
            del result[at : at + length]
        elif accident == "double":
            result[at:at] = result[at : at + length]
        elif accident == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            del result[at:]
    return bytes(result)


def places(value, before=()):
    """The path of each value in a JSON document."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*before, key))


def at(document, path):
    """The value at a path of `places`."""
    for key in path:
        document = document[key]
    return document


@st.composite
def edited(draw, document):
    """`document` with one to three values replaced, removed, added, or taken from elsewhere
    in it.
    """
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path in places(document) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        parent, key = at(document, path[:-1]), path[-1]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "elsewhere", "nest"]))
        if action == "remove":
            del parent[key]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(TEXTS)] = draw(VALUES)
        elif action == "add":
            parent.append(draw(VALUES))
        elif action == "elsewhere":
            parent[key] = copy.deepcopy(at(document, draw(st.sampled_from(paths))))
        elif action == "nest":
            parent[key] = json.loads("[" * 300 + "]" * 300)
        else:
            parent[key] = draw(VALUES)
    return document


@st.composite
def misspelt(draw, document):
    """The text of `document` with something in it that JSON's grammar, or ours, does not have."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    colons = [position for position, char in enumerate(text) if char == ":"]
    position = draw(st.sampled_from(colons)) + 1
    literal = draw(
        st.sampled_from(
            [
                "NaN",
                "-Infinity",
                "1e999",
                "9" * 70,
                "9" * 5000,
                "[" * 5000,
                '{"a":' * 5000,
                "'x'",
                '"\x01"',
                "tru",
                "1.",
                "\ufeff1",
            ]
        )
    )
    end = min((found for char in ",}" if (found := text.find(char, position)) >= 0), default=position)
    if draw(st.booleans()):
        return text[:position] + literal + text[end:]
    first = text[1 : text.index(",")] if "," in text else '"a":1'
    return f"{{{first},{text[1:]}" if draw(st.booleans()) else text + literal
