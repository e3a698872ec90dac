import time

import torch

from sprfast.bench.core import audits, cases, peers, report


class Tensors:
    """Work on four images whose answer is two of their channels."""

    device = torch.device("cpu")

    def __init__(self, samples=4):
        self.samples = torch.rand(samples, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.samples)

    def take(self, indices):
        return self.samples[list(indices)]

    def results(self, returned):
        return {"error_map": returned[0], "anomaly_map": returned[1]}


WORK = Tensors()


def honest(x):
    time.sleep(0.001)
    return x[:, :1], x[:, 1:2]


def outputs_of(maps, queries=60):
    audited = audits.Outputs(WORK, maps)
    for query in range(queries):
        audited([query % 4])
        audited.after("single_stream")
    return audited.result()


def test_equal_outputs_pass():
    assert outputs_of(honest) == {"compared": audits.SAMPLED, "passed": True}


def test_a_candidate_that_answers_something_else_under_the_clock_is_found():
    calls = []

    def lazy(x):
        calls.append(None)
        return honest(x) if len(calls) % 2 else (torch.zeros_like(x[:, :1]), x[:, 1:2])

    assert outputs_of(lazy)["passed"] is False


def test_outputs_that_the_next_call_overwrites_are_compared_as_they_were():
    errors, anomaly_maps, calls = torch.empty(1, 1, 16, 16), torch.empty(1, 1, 16, 16), []

    def in_place(x):
        calls.append(None)
        errors.copy_(x[:, :1] + len(calls))  # never the same twice
        anomaly_maps.copy_(x[:, 1:2])
        return errors, anomaly_maps

    audited = audits.Outputs(WORK, in_place)
    audited([0])
    audited.after("offline")
    assert audited.result() == {"compared": 1, "passed": False}


def test_a_cache_is_found(monkeypatch):
    monkeypatch.setattr(audits, "ROUNDS", 7)
    known = float(WORK.samples[0, 0, 0, 0])

    def remembering(x):
        time.sleep(0.001 if float(x[0, 0, 0, 0]) == known else 0.003)
        return x[:, :1], x[:, 1:2]

    assert audits.repeated(Tensors(3), remembering, 0.05)["passed"] is False
    found = audits.repeated(WORK, honest, 0.05)
    assert found["passed"] is True
    assert found["rounds"] >= audits.ROUNDS
    assert audits.repeated(Tensors(1), honest, 0.05) is None


def test_a_failed_audit_is_in_the_report(small_model):
    calls = []

    def build(model, noise, device):
        inner = peers.CANDIDATES[2].build(model, noise, device)

        def drifting(x):
            calls.append(None)
            errors, anomaly_maps = inner(x)
            return errors * (1 + 1e-6 * len(calls)), anomaly_maps

        return drifting

    options = cases.BenchOptions(batch=2, seconds=0.01, device="cpu")
    document = cases.run(small_model, options, candidates=[peers.Candidate("drifting", "for the test", build)])
    audit = document["candidates"]["drifting"]["audits"]
    assert audit["outputs"]["passed"] is False
    assert audit["outputs"]["compared"] >= 3
    assert any("FAILED the audit outputs" in note for note in report._notes(document))
