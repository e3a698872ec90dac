"""What pages of a station cost its line: viewers in a process of their own do what a page does."""

import pytest

from sprfast.bench.line import viewers
from sprfast.errors import InputError


@pytest.mark.clock
def test_turns_with_and_without_viewers(model_path, pictures):
    report = viewers.measure(model_path, pictures[0].parent, 2, 1, 1.0, 0.05)
    assert [turn["viewers"] for turn in report["turns"]] == [0, 2]
    assert min(turn["answers"] for turn in report["turns"]) > 5
    ratio = report["with_viewers"]["p99_ms"] / report["without"]["p99_ms"]
    assert report["ratio"]["p99_ms"] == pytest.approx(ratio, abs=1e-3)
    assert report["passed"] is (report["ratio"]["p99_ms"] <= 1.05)


@pytest.mark.process
def test_a_line_that_does_not_keep_pace_is_not_judged(model_path, pictures):
    with pytest.raises(InputError, match=r"does not keep pace with a trigger each 0\.0001 s"):
        viewers.measure(model_path, pictures[0].parent, 1, 1, 1.0, 0.0001)
    with pytest.raises(InputError, match="viewers: 0 is not allowed"):
        viewers.measure(model_path, pictures[0].parent, 0, 1, 1.0, 0.05)
