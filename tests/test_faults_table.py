"""docs/faults.md names every fault once, and only tests that there are."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (TESTS.parent / "docs" / "faults.md").read_text("utf-8").splitlines()
    if re.match(r"\|\s*\d+\s*\|", line)
]


def functions(name):
    """Names of the functions and methods of a test file."""
    (path,) = TESTS.rglob(name)
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_there_once():
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_whole_and_its_tests_exist(row):
    assert len(row) == 4
    assert all(row)
    for named in re.findall(r"test_\w+\.py::\w+", row[3]):
        file, _, function = named.partition("::")
        assert function in functions(file), named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_has_tests_and_nothing_is_left_to_do(row):
    assert "TODO" not in " ".join(row)
    assert re.fullmatch(r"(test_\w+\.py::test_\w+)(, test_\w+\.py::test_\w+)*", row[3])
