"""The Modbus sink against pymodbus's server, behind which a controller's program runs."""

import contextlib
import itertools
import random
import struct
import sys
import time

import pytest

from sprfast.bench.line.controller import ModbusServer, Program
from sprfast.errors import BackendError, ScoreError
from sprfast.line.sinks import Code, open_sink
from sprfast.method.threshold import Verdict
from support.line_cases import eventually
from support.sink_cases import answer, back, connected

pytest.importorskip("pymodbus", reason="pip install 'sprfast[plc]'")

PASS, REJECT, ERROR = Verdict.PASS, Verdict.REJECT, Verdict.ERROR


@pytest.fixture
def controller():
    server = ModbusServer()
    yield server
    server.close()


@contextlib.contextmanager
def opened(controller, within=0.5, skew=None):
    given = f"unit=1&within={within}" + ("" if skew is None else f"&skew={skew}")
    sink = open_sink(f"modbus://127.0.0.1:{controller.port}?{given}")
    try:
        yield sink
    finally:
        sink.close()


def part(controller, sink, id, verdict=PASS, error=None):
    """What the controller decides on a part that is triggered, photographed and answered."""
    program = controller.program
    assert eventually(lambda: not program.trigger)
    program.fire()
    count = program.count
    sink.deliver(answer(id, verdict, error))
    assert eventually(lambda: count in program.decided)
    return program.decided[count]


def test_verdicts_reach_the_coils_with_code_ratio_and_id(controller):
    program, seen = controller.program, []
    controller._on_done = lambda program: seen.append((program.outcome[0], ratio(program), program.id))
    with opened(controller) as sink:
        assert connected(sink)
        assert eventually(lambda: program.ready)
        assert (program.done, program.ok, program.ng) == (False, False, True)
        assert part(controller, sink, "part-1") == "OK"
        assert part(controller, sink, "part-2", REJECT) == "NG"
        assert part(controller, sink, "Teil-Ä", ERROR) == "ERROR"
        assert part(controller, sink, "x" * 100, ERROR, ScoreError("not finite")) == "ERROR"
        assert eventually(lambda: not program.done)
        assert (program.ok, program.ng) == (False, True)
        assert sink.fault() == ""
    assert [code for code, _, _ in seen] == [Code.PASS, Code.REJECT, Code.IMAGE, Code.SCORE]
    assert [ratio for _, ratio, _ in seen] == [0.5, 2.0, -1.0, -1.0]
    assert [id for _, _, id in seen] == ["part-1", "part-2", "Teil-?", "x" * 32]
    assert not program.ready  # the sink was closed


def ratio(program):
    return struct.unpack(">f", struct.pack(">HH", *program.outcome[2:4]))[0]


def test_a_result_without_a_trigger_goes_nowhere(controller):
    with opened(controller) as sink:
        assert connected(sink)
        sink.deliver(answer("stray"))
        assert eventually(lambda: "awaits no result for stray" in sink.fault())
        time.sleep(0.05)
        assert part(controller, sink, "part-1", REJECT) == "NG"  # not the stray one's PASS
        assert sink.fault() == ""
    assert not controller.program.repeated


def test_a_picture_from_before_the_trigger_does_not_answer_it(controller):
    program = controller.program
    with opened(controller) as sink:
        assert connected(sink)
        old = answer("old")
        time.sleep(0.2)
        program.fire()
        sink.deliver(old)
        assert eventually(lambda: "older than the TRIGGER" in sink.fault())
        sink.deliver(answer("new", REJECT))
        assert eventually(lambda: program.decided)
    assert program.decided == {1: "NG"}


@pytest.mark.parametrize(("skew", "apart", "lost"), [(None, 0.02, 1), (0.04, 0.05, 0)])
def test_a_stray_picture_does_not_shift_the_results_of_fast_parts(controller, skew, apart, lost):
    """It comes just before a trigger, and would leave each part's result to the next trigger."""
    program, verdicts = controller.program, {}
    program.patience = 0.3
    with opened(controller, skew=skew) as sink:
        assert connected(sink)
        sink.deliver(answer("stray"))
        for number in range(1, 9):
            time.sleep(apart)
            assert eventually(lambda: program.ready and not program.trigger)
            program.fire()
            verdicts[number] = "NG" if number % 2 else "OK"
            sink.deliver(answer(number, REJECT if number % 2 else PASS))
        assert eventually(lambda: len(program.decided) == 8)
    wrong = [number for number, how in program.decided.items() if how not in (verdicts[number], "TIMEOUT")]
    assert wrong in ([], [1][:lost])
    assert list(program.decided.values()).count("TIMEOUT") < 8


def test_with_skew_a_picture_of_the_part_after_does_not_answer_a_trigger(controller):
    """As when the part's own result was late, and the next part came while its trigger was on."""
    program = controller.program
    program.patience = 0.3
    with opened(controller, skew=0.01) as sink:
        assert connected(sink)
        program.fire()
        time.sleep(0.03)
        sink.deliver(answer("next"))
        assert eventually(lambda: "next was perhaps not taken within 0.01 s of the TRIGGER" in sink.fault())
        assert eventually(lambda: program.decided)
    assert program.decided == {1: "TIMEOUT"}


def test_a_second_result_for_one_trigger_is_not_given(controller):
    with opened(controller) as sink:
        assert connected(sink)
        assert part(controller, sink, "part-1", REJECT) == "NG"
        sink.deliver(answer("part-1 again"))
        assert eventually(lambda: "part-1 again" in sink.fault())
        assert part(controller, sink, "part-2") == "OK"
    assert not controller.program.repeated


def test_a_trigger_from_before_the_connection_is_rejected_by_the_controllers_timer(controller):
    program = controller.program
    program.patience = 0.3
    program.fire()
    with opened(controller) as sink:
        assert connected(sink)
        sink.deliver(answer("part-1"))
        assert eventually(lambda: program.decided)
        assert program.decided == {1: "TIMEOUT"}
        assert part(controller, sink, "part-2") == "OK"


def test_what_waits_while_the_controller_is_down_is_never_given(controller):
    program = controller.program
    program.patience = 0.2
    with opened(controller) as sink:
        assert connected(sink)
        controller.down()
        assert eventually(lambda: "is not connected" in sink.fault())
        program.fire()
        for number in range(300):  # more than the queue holds
            sink.deliver(answer(number))
        assert eventually(lambda: program.decided)
        controller.up()
        assert back(sink)
        program.patience = 1.0
        assert eventually(lambda: part(controller, sink, "fresh") == "OK")
    assert program.decided[1] == "TIMEOUT"


def test_a_heart_that_stands_still_closes_the_gate(controller):
    """The sink goes away in the middle of a PASS; the coils keep what was written."""
    program = controller.program
    program.cycle = lambda: None  # so that it does not acknowledge
    with opened(controller) as sink:
        assert connected(sink)
        program.fire()
        sink.deliver(answer("part-1"))
        assert eventually(lambda: program.passing)
        controller.down()
        assert program.done
        assert program.ok
        assert eventually(lambda: not program.alive)
        assert not program.passing
        controller.up()
        assert eventually(lambda: program.alive)
        assert not program.ok  # cleared before anything else


def test_a_result_that_is_not_taken_is_taken_back(controller):
    program = controller.program
    program.cycle = lambda: None
    with opened(controller, within=0.2) as sink:
        assert connected(sink)
        program.fire()
        sink.deliver(answer("part-1"))
        assert eventually(lambda: "did not take the result of part-1" in sink.fault())
        assert (program.done, program.ok, program.ng) == (False, False, True)


def test_an_address_that_the_controller_does_not_have_is_named(controller):
    sink = open_sink(f"modbus://127.0.0.1:{controller.port}?registers=4000")
    try:
        assert eventually(lambda: "refused writing holding registers from 4000: exception code 2" in sink.fault())
    finally:
        sink.close()


def test_no_controller_is_a_fault_and_closing_is_quick():
    sink = open_sink("modbus://127.0.0.1:1")
    assert sink.fault()
    assert eventually(lambda: "Connection refused" in sink.fault())
    began = time.monotonic()
    sink.deliver(answer(1))
    assert time.monotonic() - began < 0.1
    sink.close()
    sink.close()
    sink.deliver(answer(2))
    assert "is closed" in sink.fault()


def test_the_program_of_a_controller_passes_nothing_with_both_or_no_coil():
    program = Program(outcome=(1, 1, *[0] * 18))
    program.fire()
    for ok, ng in itertools.product((False, True), repeat=2):
        program.ack, program.decided = False, {}
        program.take([False, True, ok, ng, False, not program.heartbeat])
        assert (program.decided[1] == "OK") == (ok and not ng)


def drops(controller, count, parts_between):
    """Parts with random verdicts, while the connection drops at random moments."""
    rng, program, verdicts, gate_while_down = random.Random(0), controller.program, {}, []
    program.patience, program.watchdog = 0.25, 0.25
    with opened(controller, within=0.15) as sink:
        assert connected(sink)
        for drop in range(count):
            for _ in range(parts_between):
                verdict = rng.choice([PASS, PASS, REJECT, ERROR])
                part(controller, sink, program.count + 1, verdict)
                verdicts[program.count] = verdict
            assert eventually(lambda: not program.trigger)
            program.fire()
            verdicts[program.count] = PASS
            sink.deliver(answer(program.count))
            time.sleep(rng.choice([0.0, 0.0005, 0.001, 0.002]))
            if drop % 5:
                controller.drop()
            else:
                controller.down()
                time.sleep(2 * program.watchdog)
                gate_while_down.append(program.passing)
                controller.up()
            before = program.count
            assert eventually(lambda before=before: before in program.decided)
            assert back(sink)
        assert eventually(lambda: part(controller, sink, "last") == "OK")
    return verdicts, gate_while_down


def check_drops(controller, count, parts_between):
    verdicts, gate_while_down = drops(controller, count, parts_between)
    program = controller.program
    allowed = {PASS: {"OK", "TIMEOUT"}, REJECT: {"NG", "TIMEOUT"}, ERROR: {"ERROR", "TIMEOUT"}}
    assert not program.repeated
    assert not any(gate_while_down)
    assert set(verdicts) <= set(program.decided)
    wrong = {n: (v, program.decided[n]) for n, v in verdicts.items() if program.decided[n] not in allowed[v]}
    assert not wrong
    return [program.decided[number] for number in verdicts]


def test_each_part_is_decided_once_while_the_connection_drops(controller):
    decided = check_drops(controller, 6, 3)
    assert decided.count("OK") > 3


@pytest.mark.clock
def test_each_part_is_decided_once_over_fifty_drops(controller):
    decided = check_drops(controller, 50, 20)
    assert decided.count("TIMEOUT") <= 100  # the part in hand, and one when the connection comes back


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymodbus.client", None)
    with pytest.raises(BackendError, match=r"pip install 'sprfast\[plc\]'") as raised:
        open_sink("modbus://127.0.0.1")
    assert raised.value.exit_code == 3
