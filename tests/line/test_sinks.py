"""Sinks by their addresses, the webhook sink against a real web server, and what a line does with
them.
"""

import logging
import time

import pytest

from sprfast.errors import InputError
from sprfast.line import Line
from sprfast.line.sinks import Code, open_sink
from sprfast.method.threshold import Verdict
from support.line_cases import eventually, frame
from support.sink_cases import WebServer, answer, back, connected, free_port


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("sprfast.line.sinks.opening.WEBHOOK_WITHIN", 30.0)  # a busy machine is not late
    server = WebServer()
    yield server
    server.close()


def test_answers_are_posted_as_json(server):
    sink = open_sink(f"http://me:pass%3Aword@127.0.0.1:{server.port}/hook?cell=4")
    assert connected(sink)
    sink.deliver(answer("part-1"))
    sink.deliver(answer("part-2", Verdict.REJECT))
    sink.deliver(answer("part-3", Verdict.ERROR))
    assert eventually(lambda: len(server.results()) == 3)
    assert [(each["id"], each["verdict"], each["code"]) for each in server.results()] == [
        ("part-1", "PASS", Code.PASS),
        ("part-2", "REJECT", Code.REJECT),
        ("part-3", "ERROR", Code.IMAGE),
    ]
    sink.close()
    assert [body["ready"] for _, body in server.posts if body["type"] == "state"][:2] == [False, True]
    assert server.posts[-1][1]["ready"] is False
    assert {path for path, _ in server.posts} == {"/hook?cell=4"}
    assert {headers["Authorization"] for headers in server.headers} == {"Basic bWU6cGFzczp3b3Jk"}


def test_a_server_that_takes_nothing_is_a_fault_until_it_does(server):
    sink = open_sink(f"http://127.0.0.1:{server.port}")
    assert connected(sink)
    server.status = 503
    sink.deliver(answer("part-1"))
    assert eventually(lambda: "replied 503" in sink.fault())
    server.status = 200
    sink.deliver(answer("part-2"))
    assert back(sink)
    server.status = 302
    assert eventually(lambda: "replied 302 to the state" in sink.fault())
    sink.close()
    assert [each["id"] for each in server.results()] == ["part-1", "part-2"]  # each once


def test_what_waits_behind_a_slow_reply_goes_out_as_error(server, monkeypatch, caplog):
    monkeypatch.setattr("sprfast.line.sinks.opening.WEBHOOK_WITHIN", 1.0)
    sink = open_sink(f"http://127.0.0.1:{server.port}")
    assert connected(sink)
    server.hold.clear()
    sink.deliver(answer("part-1"))
    assert eventually(server.results)
    caplog.clear()
    began = time.monotonic()
    sink.deliver(answer("part-2"))
    assert time.monotonic() - began < 0.1  # the line goes on
    assert eventually(lambda: "timed out" in caplog.text)  # a fault until it connects again, a moment later
    server.hold.set()
    assert eventually(lambda: len(server.results()) == 2)
    sink.close()
    assert [(each["id"], each["verdict"]) for each in server.results()] == [("part-1", "PASS"), ("part-2", "ERROR")]


def test_a_server_that_comes_late_hears_of_the_parts_before_as_errors():
    port = free_port()
    sink = open_sink(f"http://127.0.0.1:{port}")
    assert eventually(lambda: "Connection refused" in sink.fault())
    for number in range(300):  # more than the queue holds
        sink.deliver(answer(number))
    server = WebServer(port)
    assert eventually(lambda: len(server.results()) == 256)
    sink.close()
    server.close()
    assert {each["code"] for each in server.results()} == {Code.LATE}
    assert [each["id"] for each in server.results()] == [str(number) for number in range(44, 300)]


def test_a_line_gives_its_answers_to_a_sink(server, engine):
    sink = open_sink(f"http://127.0.0.1:{server.port}")
    assert connected(sink)
    with Line(engine, sink.deliver) as line:
        futures = [line.submit(frame(number), number, channel_order="rgb") for number in range(4)]
        futures.append(line.submit(b"no picture", 4))
        answers = [future.result() for future in futures]
    assert eventually(lambda: len(server.results()) == 5)
    sink.close()
    told = {each["id"]: each for each in server.results()}
    for each in answers:
        assert told[str(each.id)]["verdict"] == each.verdict.value
    assert told["4"]["code"] == Code.IMAGE


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "names no host"),
        ("plc", "names no host"),
        ("ftp://host", "is of no known kind"),
        ("modbus://host:99999", "cannot be read"),
        ("modbus://[::1", "cannot be read"),
        ("modbus://host?unit=256", "unit is no whole number from 0 to 255"),
        ("modbus://host?coils=-1", "coils is no whole number"),
        ("modbus://host?speed=9", "'speed' is not known"),
        ("modbus://host?unit=1&unit=2", "says something twice"),
        ("modbus://host?within=soon", "within is no number"),
        ("modbus://host?within=0", "within: 0.0 is not allowed"),
        ("modbus://host?within=nan", "within: nan is not allowed"),
        ("modbus://host?skew=0", "skew: 0.0 is not allowed"),
        ("opcua://host?skew=x", "skew is no number"),
        ("mqtt://host/topic?skew=1", "'skew' is not known"),
        ("modbus://host/path", "has no path"),
        ("opcua://host?node=5", "node is no node id"),
        ("mqtt://host", "needs a topic"),
        ("mqtt://host/a/+", "without + and #"),
        ("http://ho st/", "has a blank"),
        ("http://host/\r\nX-Other: 1", "has a blank"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, said):
    with pytest.raises(InputError) as raised:
        open_sink(url)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["modbus", "opcua", "mqtt", "http", "ftp"])
def test_no_password_is_shown(scheme, caplog):
    shown = []
    with caplog.at_level(logging.DEBUG):
        try:
            sink = open_sink(f"{scheme}://robot:hunter2@127.0.0.1:{free_port()}/topic")
        except InputError as error:
            shown.append(str(error))
        else:
            assert eventually(lambda: "is not connected (" in sink.fault())
            shown.append(sink.fault())
            sink.close()
    assert shown
    assert "hunter2" not in "".join(shown) + caplog.text
