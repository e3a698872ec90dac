"""Many damaged exports: both readers agree on each, and the engine's own stays in its memory."""

import json

import pytest
from hypothesis import strategies as st

from sprfast.formats.manifest import signed
from support.export_reader import CORPUS, compile_native
from support.fuzzing import damaged, edited, fuzzed, misspelt

# of texts of refusals; all but the first two are of files whose hashes are right
REACHED = (
    *(
        "cut short",
        "the header is damaged",
        "the manifest is damaged",
        "has format",
        "is missing",
        "holds NaN",
        "shape",
    ),
    *("bytes where", "levels", "threshold.", "map_threshold", "field", "probe", "preprocessing."),
)


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


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("machine", "count", "flags"),
    [
        ("native", 10_000, ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
        pytest.param("aarch64", 2_000, [], marks=pytest.mark.build),
    ],
    indirect=["machine"],
    ids=["sanitizers", "aarch64"],
)
def test_thousands_of_damaged_files(machine, count, flags, tmp_path):
    """Each is refused in one line, or gives an export that is whole."""
    program = compile_native(machine, "fuzz_export.cpp", tmp_path / "fuzz", "-O1", "-DDRIVER", *flags)
    files = [*sorted(CORPUS.glob("*.plan")) * 40, *sorted(CORPUS.iterdir())]
    texts = [line.partition(" ") for line in machine.run(program, 0, count, *files).splitlines()]
    assert sum(int(number) for number, _, _ in texts) == count
    reached = {word: sum(int(number) for number, _, text in texts if word in text) for word in REACHED}
    assert all(reached.values()), reached
    assert sum(int(number) for number, _, text in texts if not text) > count // 50  # whole exports
