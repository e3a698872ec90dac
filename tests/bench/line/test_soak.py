"""`sprfast soak`: a line that is right passes, and one that loses, invents, mixes up or leaks
anything is named.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import sprfast
from sprfast.bench.line import soak
from sprfast.bench.line.soak import answers, plan, report, samples, soaking
from sprfast.bench.line.soak import pictures as pictures_of_a_run
from sprfast.data.images import Image
from sprfast.engine.engine import Engine
from sprfast.errors import InputError, OverloadedError
from sprfast.line import Line

OPTIONS = soak.SoakOptions(frames=120, faults=0.4, producers=3)
PATIENCE = 60.0

needs_proc = pytest.mark.skipif(samples.unavailable() is not None, reason=str(samples.unavailable()))


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Of what a run does beside its frames."""
    monkeypatch.setattr(soaking, "SWAPS", 2)
    monkeypatch.setattr(pictures_of_a_run, "COUNT", 7)
    monkeypatch.setattr(answers, "LONG_HANGS", 0)


@pytest.fixture(scope="module")
def engines(small_model):
    """The model, opened twice; a run changes nothing of them but the threshold."""
    return Engine(small_model, device="cpu"), Engine(small_model, device="cpu")


def failed(document):
    return [check["name"] for check in document["checks"] if check["passed"] is False]


def test_a_line_that_is_right_holds_every_check(engines):
    document = soak.run(*engines, OPTIONS)
    assert report.failures(document) == []
    assert report.exit_code(document) == 0
    assert document["complete"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["ids"]["taken"], document["ids"]["answered"]) == (120, 120)
    faults = document["faults"]
    assert set(faults) == {str(kind) for kind in plan.KINDS}
    answered = {name: sum(each[verdict] for verdict in ("PASS", "REJECT", "ERROR")) for name, each in faults.items()}
    assert sum(answered.values()) == 48  # a share of 0.4
    assert set(answered.values()) == {3}
    for kind in plan.KINDS:
        counts = faults[str(kind)]
        assert (counts["ERROR"] == answered[str(kind)]) is (plan.error_of(kind) is not None), kind
    assert sum(document["callbacks"].values()) == 6
    assert set(document["callbacks"].values()) == {1}
    assert faults["repeat"]["refused"] == answered["repeat"]
    assert faults["duplicate_id"]["refused"] == answered["duplicate_id"]
    assert document["verdicts"]["PASS"] > document["verdicts"]["REJECT"] > 0
    assert document["swaps"]["refused"] == document["swaps"]["accepted"] >= 2
    assert "probe image" in document["swaps"]["reason"]
    assert document["samples"][0]["frames"] > 0
    assert document["samples"][-1]["frames"] == 120


def test_an_export_is_soaked_as_a_model_is(small_model, tmp_path):
    from sprfast.deploy import export

    path = tmp_path / "model.onnx"
    export.export(small_model, path, export.Request("onnx"))
    document = soak.run(sprfast.load(path), sprfast.load(path), soak.SoakOptions(frames=60, faults=0.3, producers=2))
    assert failed(document) == []
    assert document["model"] == {"sha256": small_model.sha256, "backend": "onnxruntime", "precision": "float32"}


def test_images_of_ones_own(engines, pictures):
    document = soak.run(*engines, soak.SoakOptions(frames=60, faults=0.3, producers=2), pictures)
    assert failed(document) == []
    assert document["verdicts"]["REJECT"] > 0


class Twice(Line):
    def __init__(self, predictor, on_answer, **given):
        super().__init__(predictor, lambda answer: (on_answer(answer), on_answer(answer)), **given)


class Silent(Line):
    def __init__(self, predictor, on_answer, **given):
        super().__init__(predictor, lambda answer: answer.id == "soak1-10" or on_answer(answer), **given)


class AnyId(Line):
    """Takes an id again, and gives its first answer."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.futures = {}

    def submit(self, image, id, *given, **named):
        if id not in self.futures:
            self.futures[id] = super().submit(image, id, *given, **named)
        return self.futures[id]


class MixedUp(Line):
    """Gives the future of another frame."""

    def submit(self, image, id, *given, **named):
        future = super().submit(image, id, *given, **named)
        if id == "soak0-20":
            self.kept = future
        return self.kept if id == "soak0-21" else future


class Refuses(Line):
    def submit(self, image, id, *given, **named):
        if id == "soak0-0":
            self._counters.count(refused=1)
            raise OverloadedError("no")
        return super().submit(image, id, *given, **named)


class Miscounts(Line):
    def submit(self, image, id, *given, **named):
        if id == "soak0-0":
            self._counters.count(taken=1)
        return super().submit(image, id, *given, **named)


class WaitsForItsCallback(Line):
    """Gives no answer while the callback hangs, whatever the deadline."""

    def __init__(self, predictor, on_answer, **given):
        super().__init__(predictor, on_answer, **given)
        self._in_flight.take_late = lambda beat: None if self._in_flight.stopped else time.sleep(beat) or []


class PassesLate(Line):
    """Answers what it has answered, a while after the deadline."""

    def __init__(self, predictor, on_answer, *, deadline, **given):
        super().__init__(predictor, on_answer, deadline=None, **given)


class TakesAnyModel(Line):
    def _test(self, predictor):
        pass


class LeaksThreads(Line):
    """One for every frame of a producer after the warm-up; they end with `release`."""

    release = threading.Event()

    def submit(self, image, id, *given, **named):
        if id.startswith("soak2-3"):
            threading.Thread(target=self.release.wait, daemon=True).start()
        return super().submit(image, id, *given, **named)


class LeaksDescriptors(Line):
    leaked: ClassVar = []

    def submit(self, image, id, *given, **named):
        if id.startswith("soak2-3"):
            self.leaked.append(os.open(os.devnull, os.O_RDONLY))
        return super().submit(image, id, *given, **named)


@pytest.mark.parametrize(
    ("line_of", "names"),
    [
        (Twice, ["every id is answered once"]),
        (Silent, ["every id is answered once"]),
        (MixedUp, ["every id is answered once"]),
        (AnyId, ["every id is answered once", "the line counts right"]),
        (Refuses, ["what is refused is accounted for"]),
        (Miscounts, ["the line counts right"]),
        (TakesAnyModel, ["models are swapped"]),
        pytest.param(LeaksThreads, ["threads do not grow", "Python threads do not grow"], marks=needs_proc),
        pytest.param(LeaksDescriptors, ["descriptors do not grow"], marks=needs_proc),
    ],
)
def test_a_line_that_is_wrong_is_named(engines, line_of, names):
    LeaksThreads.release.clear()
    document = soak.run(*engines, OPTIONS, line_of=line_of)
    LeaksThreads.release.set()
    while LeaksDescriptors.leaked:
        os.close(LeaksDescriptors.leaked.pop())
    assert failed(document) == names
    assert report.exit_code(document) == 1
    assert [each.partition(":")[0] for each in report.failures(document)] == names


class SwapsScores(Engine):
    """Gives the results of a batch in the wrong order."""

    def score(self, prepared):
        return super().score(prepared)[::-1]


class PassesAnything(Engine):
    """Takes a blank picture where there is none."""

    def prepare(self, source, channel_order=None):
        try:
            return super().prepare(source, channel_order)
        except InputError:
            return Image(np.zeros((3, 32, 32), np.float32), (32, 32))


@pytest.mark.parametrize(
    ("kind", "name"), [(SwapsScores, "good frames score as they do alone"), (PassesAnything, "no fault passes")]
)
def test_a_predictor_that_is_wrong_is_named(small_model, kind, name):
    document = soak.run(kind(small_model, device="cpu"), kind(small_model, device="cpu"), OPTIONS)
    assert failed(document) == [name]
    assert report.exit_code(document) == 1
    assert document["examples"]
    assert len(document["examples"]) <= 5


def test_a_line_that_hangs_is_given_up(engines, small_model, monkeypatch):
    release = threading.Event()

    class Stuck(Engine):
        frames = 0

        def prepare(self, source, channel_order=None):
            self.frames += 1
            if self.frames == 30:  # 7 of them are scored alone, before
                release.wait()
            return super().prepare(source, channel_order)

    monkeypatch.setattr(soaking, "PATIENCE", 1.0)
    monkeypatch.setattr(soaking, "DRAIN", 0.5)
    stuck = Stuck(small_model, device="cpu")
    try:
        document = soak.run(stuck, stuck, OPTIONS, line_of=lambda *given, **_: Line(*given, timeout=PATIENCE))
    finally:
        release.set()
    assert not document["complete"]
    assert "the line does not hang" in failed(document)
    assert "every id is answered once" not in failed(document)  # closing answers what is left


@pytest.mark.parametrize("after", [0, 50])
def test_a_signal_ends_it_with_all_that_was_taken_answered(engines, after):
    sent = []

    def on_progress(done, total, what):
        if done >= after and not sent:
            sent.append(what)
            signal.raise_signal(signal.SIGTERM)

    document = soak.run(*engines, soak.SoakOptions(frames=100_000), on_progress=on_progress)
    assert (document["complete"], document["signal"], report.exit_code(document)) == (False, "SIGTERM", 143)
    assert failed(document) == []
    assert after <= document["ids"]["taken"] < 100_000
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_command_stops_at_a_signal(model_path, tmp_path):
    output = tmp_path / "soak.json"
    command = [sys.executable, "-m", "sprfast", "soak", str(model_path), "--device", "cpu", "-o", str(output), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("soaking: 100000 frames") for line in process.stderr)
        time.sleep(2.0)  # frames are likely under way; if not, the end is the same
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    document = json.loads(out)
    assert json.loads(output.read_text()) == document
    assert (document["complete"], document["signal"], document["ids"]["unanswered"]) == (False, "SIGTERM", 0)
    assert failed(document) == []


def test_the_command_prints_a_table(run, model_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = (
        "soak",
        model_path,
        "--frames",
        "100",
        "--warm-up",
        "1",
        "--faults",
        "0",
        "--producers",
        "1",
        "--device",
        "cpu",
    )
    code, out, err = run(*arguments)
    assert (code, "FAILED" in out) == (0, False)
    assert "100 taken; 0 not answered" in " ".join(out.split())
    assert "judged from 20,000 frames after the warm-up, not from 99" in " ".join(out.split())
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(report, "MEMORY_LIMIT", -1e9)
    monkeypatch.setattr(report, "JUDGED", 0)
    monkeypatch.setattr(samples, "_memory_kb", lambda _: float(len(os.listdir("/"))))
    code, out, err = run(*arguments, "--json")
    assert code == 1
    assert [check["name"] for check in json.loads(out)["checks"] if check["passed"] is False] == [
        "memory does not grow"
    ]
    assert "sprfast: memory does not grow: 0 KB per 1,000 frames, limit -1e+09" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frames", "0"], "frames: 0 is not allowed"),
        (["--frames", "20"], "frames: 20 are too few for 4 producers and 16 faults"),
        (["--faults", "1.5"], "faults: 1.5 is not allowed"),
        (["--producers", "0"], "producers: 0 is not allowed"),
        (["--warm-up", "100000"], "warm_up: 100000 is not allowed, expected 0 to 99999"),
        (["--images", "nowhere"], "nowhere"),
        (["-o", "nowhere/report.json"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, model_path, arguments, said):
    code, out, err = run("soak", model_path, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("sprfast: ")
    assert said in err


def test_images_of_several_sizes_are_refused(engines, pictures, tmp_path):
    import PIL.Image

    other = tmp_path / "other.png"
    PIL.Image.new("RGB", (40, 32)).save(other)
    with pytest.raises(InputError, match=r"must have one size.*other\.png makes 32x32 and 32x40"):
        soak.run(*engines, OPTIONS, [*pictures, other])


@pytest.mark.parametrize(
    ("slope", "frames", "passed"),
    [(0.9, 30_000, True), (1.1, 30_000, False), (1.1, 19_999, None), (None, 30_000, None)],
)
def test_memory_is_judged_on_long_runs(slope, frames, passed):
    unknown = {"slope": None, "standard_error": None, "median_slope": None, "first": None, "last": None}
    trends = dict.fromkeys(report._QUANTITIES, unknown)
    trends["memory_kb"] = unknown | {"slope": 1.0, "standard_error": 0.1, "median_slope": slope}
    trends["descriptors"] = unknown | {"first": 5, "last": 6}
    options, answers = soak.SoakOptions(warm_up=100), SimpleNamespace(answered=frames + 100)
    outcome = SimpleNamespace(answers=answers, options=options, complete=True)
    held = {name: result for name, result, _ in report._resources(outcome, trends)}
    assert held["memory does not grow"] is passed
    assert (held["threads do not grow"], held["descriptors do not grow"]) == (None, False)


@pytest.mark.parametrize(
    ("line_of", "names"),
    [
        (Line, []),
        (WaitsForItsCallback, ["answers come by their deadline"]),
        (PassesLate, ["answers come by their deadline"]),
    ],
)
def test_callbacks_that_hang_beyond_all_deadlines_delay_no_answer(engines, monkeypatch, line_of, names):
    monkeypatch.setattr(answers, "LONG_HANGS", 1)
    monkeypatch.setattr(answers, "GRACE", 0.2)
    monkeypatch.setattr(soaking, "LEAST_DEADLINE", 0.2)
    monkeypatch.setattr(soaking, "FULL", 1)
    document = soak.run(*engines, soak.SoakOptions(frames=240, faults=0.2, producers=3), line_of=line_of)
    assert failed(document) == names
    assert document["deadline"] == 0.2
    if line_of is Line:
        assert document["late"] > 0
        assert document["complete"]
