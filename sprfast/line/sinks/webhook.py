"""Webhooks: a POST of JSON for each answer, by the standard library."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from typing import Any

from sprfast._version import __version__
from sprfast.errors import SinkError
from sprfast.line.sinks.message import Message

HEARTBEAT = 1.0  # seconds
LONGEST_REPLY = 2**16  # bytes


class WebhookConnection:
    """A `Connection` to a web server. A message counts as given out with a reply from 200 to 299;
    others are no taking, a redirection among them.

    Args:
        secure: HTTPS, with the certificates that the system trusts.
        host: name or address.
        port: of the server; None: of the scheme.
        target: path and query.
        user: name and password for basic authentication; None: none.
        timeout: seconds to connect, and for each part of a reply.
    """

    interval, takes_late = HEARTBEAT, True

    def __init__(
        self, secure: bool, host: str, port: int | None, target: str, user: tuple[str, str] | None, timeout: float
    ) -> None:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout)
        self.name = f"webhook {host}:{self._connection.port}"
        self._target = target
        self._headers = {"Content-Type": "application/json", "User-Agent": f"sprfast/{__version__}"}
        if user is not None:
            self._headers["Authorization"] = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"

    def open(self) -> None:
        """Connect, and say that the station is not ready yet."""
        self._connection.connect()
        self._post(_state(False))

    def send(self, message: Message) -> None:
        """Post a result.

        Raises:
            SinkError: the server did not take it.
        """
        self._post(message.to_json())

    def idle(self) -> None:
        """Post that the station is ready."""
        self._post(_state(True))

    def rest(self) -> None:
        """Post that it is not."""
        self._post(_state(False))

    def abort(self) -> None:
        """Break the connection."""
        with contextlib.suppress(OSError):
            self._connection.close()

    def _post(self, body: dict[str, Any]) -> None:
        self._connection.request("POST", self._target, json.dumps(body), self._headers)
        reply = self._connection.getresponse()
        if len(reply.read(LONGEST_REPLY)) == LONGEST_REPLY:
            raise ConnectionError(f"the server's reply has {LONGEST_REPLY} bytes or more")
        if not 200 <= reply.status < 300:
            of = body.get("id", "the station")
            raise SinkError(f"the server replied {reply.status} to the {body['type']} of {of}")


def _state(ready: bool) -> dict[str, Any]:
    return {"type": "state", "ready": ready, "time": round(time.time(), 6)}
