"""Which frames of a soak are faulty, and how."""

from sprfast.bench.line.soak import plan
from sprfast.line.sources import Fault


def test_a_plan_has_every_kind_and_says_where():
    made = plan.FaultPlan(103, 4, 0.5, seed=1)
    assert made.counts == [26, 26, 26, 25]
    kinds = [made.kind(frame) for frame in range(103)]
    assert sum(kind is not None for kind in kinds) == 52
    assert set(kinds) == {None, *plan.KINDS}
    for index, start in enumerate((0, 26, 52, 78)):
        assert made.place(f"soak{index}-7") == (start + 7, 7)
        own = kinds[start : start + made.counts[index]]
        assert (own[0], own[-1]) == (None, None)
        assert made.camera_faults(index) == {number: kind for number, kind in enumerate(own) if isinstance(kind, Fault)}
    for unknown in ("soak4-0", "soak3-25", "soak0-1@2", "part", 7):
        assert made.place(unknown) is None
    assert not any(plan.FaultPlan(103, 4, 0.0, 1).kind(frame) for frame in range(103))


def test_what_a_camera_spoils_must_not_pass():
    assert {kind for kind in Fault if plan.error_of(kind)} == {kind for kind in Fault if kind.spoils}


def test_a_plan_has_every_way_in_which_a_callback_fails():
    made = plan.FaultPlan(10_000, 4, 0.01, seed=1)
    faults = [fault for frame in range(10_000) if (fault := made.callback(frame))]
    assert len(faults) == 100
    assert set(faults) == set(plan.CallbackFault)
    assert not any(plan.FaultPlan(103, 4, 0.0, 1).callback(frame) for frame in range(103))
