"""The log of verdicts: what is written stays, and what is changed afterwards shows."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time

import pytest

from sprfast.errors import InputError
from sprfast.formats import verdict_log
from sprfast.formats.log_verification import verify
from sprfast.formats.verdict_log import VerdictLog
from sprfast.method import threshold
from support import ROOT

CALIBRATED = threshold.calibrate([0.01 * each for each in range(1, 31)], 0.1)


def answer(number, verdict="PASS", score=0.1):
    return verdict_log.answer(f"part-{number}", verdict, score, CALIBRATED.value, None, "a1")


def written(path, count, **options):
    """A log of a model and `count` answers."""
    with VerdictLog(path, **options) as log:
        log.add(verdict_log.model("a1", CALIBRATED))
        for number in range(count):
            log.add(answer(number))
    return path


def files(folder):
    """Names of the files of logs, without what belongs to locks."""
    return sorted(each.name for each in folder.iterdir())


def test_a_line_has_its_place_its_content_and_its_hash_as_the_docs_say(tmp_path):
    path = written(tmp_path / "verdicts.jsonl", 3)
    lines = path.read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["number"] for record in records] == [1, 2, 3, 4]
    assert records[0]["event"] == "model"
    assert records[0]["threshold"]["false_reject_rate"] == 0.1
    assert {**records[1], "time": ""} == {**records[1], **answer(0), "time": ""}
    assert records[1]["time"].endswith("+00:00")
    before = "0" * 64
    for line, record in zip(lines, records, strict=True):
        assert record["previous"] == before
        assert line.endswith(b', "sha256": "' + record["sha256"].encode() + b'"}')
        before = record["sha256"]
        assert hashlib.sha256(line[:-79]).hexdigest() == before
    found = verify(path)
    assert (found.problem, found.records, found.answers, found.head) == ("", 4, 3, before)


def test_values_that_json_has_not_are_written_all_the_same(tmp_path):
    path = tmp_path / "log"
    with VerdictLog(path) as log:
        log.add(verdict_log.answer(("lot", 3), "ERROR", float("nan"), None, "\udcff\r\u2028\n批", "a1"))
    record = json.loads(path.read_bytes())
    assert (record["id"], record["score"], record["reason"]) == ("('lot', 3)", None, "\udcff\r\u2028\n批")
    assert verify(path).problem == ""
    with VerdictLog(path) as log:
        log.add(answer(1))
    assert verify(path).records == 2


def change(lines):
    lines[3] = lines[3].replace(b"PASS", b"FAIL")


def change_and_hash_again(lines):
    body = lines[3].replace(b"part-2", b"part-7")[:-80]
    lines[3] = body + f', "sha256": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def delete(lines):
    del lines[3:5]


def delete_first(lines):
    del lines[0]


def swap(lines):
    lines[3], lines[5] = lines[5], lines[3]


def move_back(lines):
    lines.append(lines.pop(3))


def repeat(lines):
    lines.insert(4, lines[3])


def cut_within(lines):
    lines[3:5] = [lines[3][:40] + lines[4][60:]]


def cut_the_end(lines):
    lines[3:] = [lines[3][:40]]


def insert_nothing(lines):
    lines.insert(3, b"\n")


@pytest.mark.parametrize(
    ("damage", "line", "says"),
    [
        (change, 4, "changed: its content does not have the hash"),
        (change_and_hash_again, 5, "changed: record 5 was written after another record 4"),
        (delete, 4, "deleted: records 4 to 5 are missing before record 6"),
        (delete_first, 1, "deleted: record 1 is missing before record 2"),
        (swap, 4, "reordered: record 6 stands where record 4 belongs, which comes later"),
        (move_back, 4, "reordered: record 5 stands where record 4 belongs, which comes later"),
        (repeat, 5, "reordered: record 4 stands where record 5 belongs"),
        (cut_within, 4, "cut or damaged: it is no whole record"),
        (cut_the_end, 4, "cut: it has no end"),
        (insert_nothing, 4, "cut or damaged"),
    ],
)
def test_the_first_line_that_is_not_as_it_was_written_is_named(tmp_path, damage, line, says):
    path = written(tmp_path / "verdicts.jsonl", 8)
    lines = path.read_bytes().splitlines(keepends=True)
    damage(lines)
    path.write_bytes(b"".join(lines))
    assert verify(path).problem.startswith(f"verdicts.jsonl: line {line}: {says}")


def test_what_is_cut_off_at_the_end_shows_to_who_has_kept_a_hash(tmp_path):
    path = written(tmp_path / "log", 5)
    head = verify(path).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path).problem == ""
    assert "no record has the hash" in verify(path, head=head).problem
    path.write_bytes(b"".join(lines))
    written(path, 2)
    assert verify(path, head=head).problem == ""


@pytest.mark.parametrize("left", [1, 9, 40, -1])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_record_that_a_crash_has_cut_stays_and_is_recorded(tmp_path, left, rotated):
    path = written(tmp_path / "verdicts.jsonl", 30 if rotated else 3, max_bytes=4096)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    torn = whole[: len(whole) - len(last)] + last[:left]
    path.write_bytes(torn)
    for _ in range(2):  # the second time nothing is cut
        with VerdictLog(path, max_bytes=4096) as log:
            log.add(answer(7))
    assert path.read_bytes().startswith(torn + b"\n") or rotated
    found = verify(path)
    assert (found.problem, found.cuts) == ("", int(left > 0))  # without its end a line is whole


def test_a_file_whose_only_record_was_cut_is_gone_on_with(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"number": 1, "ti')
    written(path, 1)
    assert (verify(path).problem, verify(path).cuts, verify(path).records) == ("", 1, 3)


def test_bytes_of_a_cut_may_not_be_changed_either(tmp_path):
    path = written(tmp_path / "log", 3)
    path.write_bytes(path.read_bytes()[:-9])
    written(path, 1)
    content = path.read_bytes()
    place = content.index(b"part-2")
    path.write_bytes(content[:place] + b"part-3" + content[place + 6 :])
    assert verify(path).problem.startswith("log: line 4: ")
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    assert verify(path).problem == "log: line 4: changed: the bytes of the cut that it records are not there"


def test_a_log_goes_on_in_a_new_file_and_the_chain_with_it(tmp_path):
    path = written(tmp_path / "verdicts.jsonl", 40, max_bytes=4096)
    written(path, 40, max_bytes=4096)
    names = files(tmp_path)
    assert len(names) > 5
    assert all(re.fullmatch(r"verdicts(\.\d+-\d+)?\.jsonl", name) for name in names)
    assert all((tmp_path / name).stat().st_size <= 4096 for name in names)
    seen = []
    found = verify(path, on_record=lambda record: seen.append(record["number"]))
    assert (found.problem, found.files, found.answers) == ("", len(names), 80)
    assert seen == [*range(1, 83)]
    earlier = sorted(
        (name for name in names if name != "verdicts.jsonl"), key=lambda name: int(re.findall(r"\d+", name)[0])
    )
    alone = tmp_path / earlier[1]
    first = int(re.findall(r"\d+", earlier[1])[0])
    assert verify(alone, first=first).problem == ""
    alone.unlink()
    assert f"deleted: records {first} to " in verify(path).problem
    (tmp_path / earlier[0]).unlink()
    begins = int(re.findall(r"\d+", earlier[2])[0])
    assert f"{earlier[2]}: line 1: deleted: records 1 to {begins - 1} are missing" in verify(path).problem
    assert verify(path, first=begins).problem == ""


def test_a_crash_between_two_files_costs_nothing(tmp_path):
    path = written(tmp_path / "log.jsonl", 3)
    os.rename(path, tmp_path / "log.1-4.jsonl")
    written(path, 2)
    assert (verify(path).problem, verify(path).records) == ("", 7)


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path):
    path = tmp_path / "log"
    link = tmp_path / "link"
    link.symlink_to(path)
    with VerdictLog(path) as log:
        log.add(answer(1))
        for name in (path, link):
            with pytest.raises(InputError, match="another process"):
                VerdictLog(name)
        log.add(answer(2))
    assert files(tmp_path) == ["link", "log"]
    assert verify(link).records == 2


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x89PNG", b'{"number": 1}\n'])
def test_what_is_no_log_stays_as_it_is(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"results\.csv: is no log of verdicts"):
        VerdictLog(path)
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="folder"):
        VerdictLog(tmp_path)
    with pytest.raises(InputError, match="no such log"):
        verify(tmp_path / "nowhere")


def test_a_file_that_is_moved_or_written_by_others_meanwhile_is_a_fault(tmp_path):
    path = tmp_path / "log"
    with VerdictLog(path) as log:
        log.add(answer(1))
        os.rename(path, tmp_path / "moved")
        with pytest.raises(InputError, match="moved or removed"):
            log.add(answer(2))
        os.rename(tmp_path / "moved", path)
        log.add(answer(2))
        with path.open("ab") as other:
            other.write(b"x")
        with pytest.raises(InputError, match="something else has written"):
            log.add(answer(3))
    assert verify(path).records == 2


def test_a_full_disk_costs_no_record_that_is_there_and_none_that_comes_after(tmp_path, monkeypatch):
    path = tmp_path / "log"
    write, room = os.write, [800]

    def limited(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(descriptor, bytes(data)[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(verdict_log.os, "write", limited)
    with VerdictLog(path) as log:
        for number in range(2):
            log.add(answer(number))
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            log.add(answer(2))
        assert room == [0]  # a part of it was written
        room[0] = 10_000
        log.add(answer(3))
    assert (verify(path).problem, verify(path).cuts, verify(path).records) == ("", 0, 3)


@pytest.mark.process
def test_a_writer_that_is_killed_loses_no_record_that_was_written(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    code = """
import sys
from sprfast.formats import verdict_log
with verdict_log.VerdictLog(sys.argv[1], 4096) as log:
    number = 0
    while True:
        log.add(verdict_log.answer(number, "PASS", 0.5, 1.0, None, "a1"))
        print(number, flush=True)
        number += 1
"""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        time.sleep(0.05)
        process.kill()
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        records = []
        found = verify(path, on_record=records.append)
        assert not found.problem or "cut: it has no end" in found.problem
        assert not said or said[-1] in [record.get("id") for record in records[-2:]]
    written(path, 1)
    assert verify(path).problem == ""
