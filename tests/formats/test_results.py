"""The rows of `predict`, in memory and in a file."""

import json
import tracemalloc

import pytest

from sprfast.errors import InputError
from sprfast.formats.results import Results

BY = {"model_sha256": "a1", "setting": "published", "backend": "eager", "precision": "float32", "threshold": 1.5}
ANSWER = {"pred_score": 1.0, "verdict": "PASS", "threshold": 1.5, "milliseconds": 2.0}


def test_a_row_says_by_what_and_when_it_was_computed(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(BY, path) as results, Results(BY) as held:
        for each in (results, held):
            each.add("a.png", ANSWER)
        (row,) = results
        assert json.loads(path.read_text()) == row
        assert {name: row[name] for name in BY | ANSWER | {"path": ""}} == BY | ANSWER | {"path": "a.png"}
        assert row["time"].endswith("+00:00")
        assert row["version"]
        assert next(iter(held)).keys() == row.keys()
        assert results.counts == held.counts == {"PASS": 1, "REJECT": 0, "ERROR": 0}


def test_rows_are_taken_up_once_for_each_image(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(BY, path) as results:
        results.add("a.png", ANSWER | {"overlay": "A.png"})
        results.add("a.png", ANSWER)
    with Results(BY, path, resume=True) as results:
        assert [results.take("a.png") for _ in range(3)] == [True, True, False]
        assert not results.take("b.png")
        assert results.counts["PASS"] == 2
        assert results.overlays == {"a.png"}
        results.add("b.png", ANSWER)
        assert [row["path"] for row in results] == ["a.png", "a.png", "b.png"]
    with Results(BY, path) as results:
        assert not list(results)


@pytest.mark.parametrize("name", ["model_sha256", "setting", "backend", "precision", "threshold"])
def test_rows_by_something_else_are_not_gone_on_with(name, tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(BY, path) as results:
        results.add("a.png", ANSWER)
    before = path.read_bytes()
    for _ in range(2):  # the second time nobody holds the file
        with pytest.raises(InputError, match=f"line 1 has {name}"):
            Results(BY | {name: "other"}, path, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line", ["[]", "{}", "no JSON", '{"path": "", "verdict": "PASS"}', '{"path": "", "verdict": 1}']
)
def test_damaged_rows_are_named(line, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"results\.jsonl: line 1 "):
        Results(BY, path, resume=True)


def test_rows_of_a_file_take_no_memory(tmp_path):
    with Results(BY, tmp_path / "results.jsonl") as results:
        tracemalloc.start()
        for number in range(300):
            results.add(f"{number}.png", ANSWER | {"reason": "x" * 10_000})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 300_000
