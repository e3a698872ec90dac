"""A station with its page, served to real HTTP requests, and a source that the tests push frames
into.
"""

import contextlib
import dataclasses
import http.client
import json
import queue
import threading
import urllib.parse

from sprfast.cli.calibrate import calibrate_file
from sprfast.cli.calibration_request import Request
from sprfast.cli.options import Runtime
from sprfast.engine.load import load
from sprfast.line.frames import Frame
from sprfast.line.station import Station
from sprfast.line.station.server import Server
from support.line_cases import PATIENCE, eventually, frame


class Pushed:
    """A source of the frames that are pushed."""

    def __init__(self):
        self._frames, self.said = queue.SimpleQueue(), ""

    def __iter__(self):
        return iter(self._frames.get, None)

    def push(self, id, image, **given):
        self._frames.put(Frame(id, image, given.pop("trigger_time", None), "rgb", **given))

    def fault(self):
        return self.said

    def close(self):
        self._frames.put(None)


class Heard:
    """A listener that keeps the answers."""

    def __init__(self):
        self.answers, self.said, self.closed = [], "", False

    def deliver(self, answer):
        self.answers.append(answer)

    def fault(self):
        return self.said

    def close(self, timeout=2.0):
        self.closed = True


@dataclasses.dataclass
class Served:
    """A station that runs, and what the tests ask it."""

    station: Station
    server: Server
    source: Pushed
    heard: Heard

    def ask(self, method, path, body=None, **headers):
        """Status and content of a request; header names have _ for -."""
        where = urllib.parse.urlsplit(self.server.address)
        connection = http.client.HTTPConnection("127.0.0.1", where.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body), named)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content

    def act(self, path, **body):
        """Status and sentence of a button that is pushed with the token."""
        status, content = self.ask("POST", path, body, x_station_token=self.server.access.token)
        (said,) = json.loads(content).values()
        return status, said

    @contextlib.contextmanager
    def events(self):
        """An iterator of the events, as (kind, data)."""
        where = urllib.parse.urlsplit(self.server.url)
        connection = http.client.HTTPConnection("127.0.0.1", where.port, timeout=PATIENCE)
        connection.request("GET", f"/events?{where.query}")
        try:
            yield _events(connection.getresponse())
        finally:
            connection.close()

    def state(self):
        with self.events() as events:
            return next(data for kind, data in events if kind == "state")

    def answered(self, *ids):
        """Push pictures of their own and wait for the answers."""
        for id in ids:
            self.source.push(id, frame(int(id)))
        assert eventually(lambda: {*ids} <= {answer.id for answer in self.heard.answers})


def _events(response):
    kind = None
    for line in response:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


@contextlib.contextmanager
def serving(model_path, source=None, host="127.0.0.1", port=0, **given):
    source, heard = source or Pushed(), Heard()
    listeners = [*given.pop("listeners", ()), heard]
    station = Station(
        model_path,
        load(model_path),
        source,
        opened=load,
        calibrated=lambda path, good: calibrate_file(path, Request(good, 0.2), Runtime()),
        good=model_path.with_name("good"),
        listeners=listeners,
        **given,
    )
    with station, Server(station, host, port) as server:
        running = threading.Thread(target=station.run)
        running.start()
        try:
            yield Served(station, server, source, heard)
        finally:
            source.close()
            running.join(PATIENCE)
            assert not running.is_alive()
