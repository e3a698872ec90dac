"""The configuration of a model of Triton Inference Server, read back."""

import re


def config(folder, name="screw"):
    """The configuration as mappings of names to lists of values."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}]|[^\s{}"]+', (folder / name / "config.pbtxt").read_text("ascii"))

    def message(depth=0):
        fields = {}
        while tokens and tokens[0] != "}":
            key = tokens.pop(0)
            if key.endswith(":"):
                value = tokens.pop(0)
                value = int(value) if re.fullmatch(r"-?\d+", value) else value
            else:
                assert tokens.pop(0) == "{"
                value = message(depth + 1)
                assert tokens.pop(0) == "}"
            fields.setdefault(key.rstrip(":"), []).append(value)
        return fields

    fields = message()
    assert not tokens
    return fields
