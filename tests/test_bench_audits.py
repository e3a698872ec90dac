import time

import torch

from sprfast.bench import audits, cases, peers, report

SAMPLES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def honest(x):
    time.sleep(0.001)
    return x[:, :1], x[:, 1:2]


def outputs_of(maps, queries=60):
    audited = audits.Outputs(maps)
    for query in range(queries):
        first = query % 4
        audited(SAMPLES[first : first + 1])
        audited.after("single_stream", lambda first=first: SAMPLES[first : first + 1])
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
    errors, anomaly_maps = torch.empty(1, 1, 16, 16), torch.empty(1, 1, 16, 16)

    def in_place(x):
        errors.copy_(x[:, :1])
        anomaly_maps.copy_(x[:, 1:2])
        return errors, anomaly_maps

    audited = audits.Outputs(in_place)
    audited(SAMPLES[:1])
    audited.after("offline", lambda: SAMPLES[1:2])  # another query: another output
    assert audited.result() == {"compared": 1, "passed": False}


def test_a_cache_is_found():
    known = float(SAMPLES[0, 0, 0, 0])

    def remembering(x):
        time.sleep(0.001 if float(x[0, 0, 0, 0]) == known else 0.003)
        return x[:, :1], x[:, 1:2]

    assert audits.repeated(remembering, SAMPLES[:3], 0.05)["passed"] is False
    found = audits.repeated(honest, SAMPLES, 0.05)
    assert found["passed"] is True
    assert found["rounds"] >= audits.ROUNDS
    assert audits.repeated(honest, SAMPLES[:1], 0.05) is None


def test_a_failed_audit_is_in_the_report(small_model):
    calls = []

    def build(model, noise, device):
        inner = peers.CANDIDATES[2].build(model, noise, device)

        def drifting(x):
            calls.append(None)
            errors, anomaly_maps = inner(x)
            return errors * (1 + 1e-6 * len(calls)), anomaly_maps

        return drifting

    document = cases.run(small_model, batch=2, seconds=0.01, device="cpu", candidates=[peers.Candidate("drifting", "for the test", build)])
    audit = document["candidates"]["drifting"]["audits"]
    assert audit["outputs"]["passed"] is False
    assert audit["outputs"]["compared"] >= 3
    assert any("FAILED the audit outputs" in note for note in report._notes(document))
