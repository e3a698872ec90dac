"""`predict --log`, `log verify` and `report --shift`."""

import json

from sprfast.formats.log_verification import verify
from support.command_line import one_line


def test_what_predict_logs_is_verified_and_becomes_a_page(run, model_path, pictures, tmp_path):
    log, page = tmp_path / "verdicts.jsonl", tmp_path / "shift.html"
    missing = tmp_path / "missing.png"
    for _ in range(2):  # the second run goes on with the log
        code, out, _ = run(
            "predict",
            model_path,
            *pictures,
            missing,
            "--log",
            log,
            "-o",
            tmp_path / "out",
            "--backend",
            "eager",
            "--json",
        )
        assert code == 1
    rows = json.loads(out)["results"]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    answers = [record for record in records if "event" not in record]
    assert len(answers) == 10
    for row, answer in zip(rows, answers[5:], strict=True):
        assert answer["id"] == row["path"]
        assert (answer["score"], answer["verdict"]) == (row["pred_score"], row["verdict"])
        assert (answer["model_sha256"], answer["threshold"]) == (row["model_sha256"], row["threshold"])
        assert answer["reason"] == row.get("reason")

    code, out, _ = run("log", "verify", log, "--json")
    found = json.loads(out)
    assert (code, found["answers"], found["problem"], found["head"]) == (0, 10, "", records[-1]["sha256"])
    assert run("log", "verify", log, "--head", found["head"])[0] == 0
    assert run("report", "--shift", log, "-o", page) == (0, "", f"page: {page}\n")
    assert "<h1>Shift</h1>" in page.read_text()

    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:5], lines[5].replace("PASS", "REJECT").replace("ERROR", "PASS"), *lines[6:]]))
    assert verify(log).problem
    for arguments in (["log", "verify", log], ["report", "--shift", log, "-o", page]):
        code, _, err = run(*arguments)
        assert code == 1
        assert err.splitlines()[-1].startswith("sprfast: verdicts.jsonl: line 6: changed: ")
    assert "not as it was written" in page.read_text()


def test_a_log_that_cannot_be_written_ends_a_run_in_one_sentence(run, model_path, pictures, tmp_path):
    predict = ("predict", model_path, pictures[0], "--backend", "eager", "--log")
    assert "is no log of verdicts" in one_line(run, *predict, pictures[0])
    assert "folder" in one_line(run, *predict, tmp_path)
    assert "cannot be written" in one_line(run, *predict, tmp_path / "nowhere" / "log")
    assert "--ray" in one_line(run, *predict, tmp_path / "log", "--ray", "local")


def test_what_is_asked_of_a_log_in_vain_is_one_sentence(run, model_path, tmp_path):
    page = tmp_path / "shift.html"
    assert "no such log" in one_line(run, "log", "verify", tmp_path / "log")
    assert "line 1" in one_line(run, "report", "--shift", model_path, "-o", page)
    assert "is no time" in one_line(run, "report", "--shift", model_path, "-o", page, "--from", "six")
    assert "read here" in one_line(run, "report", "--shift", model_path, "-o", model_path)
    assert not page.exists()
