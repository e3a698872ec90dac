"""MQTT 5, by paho-mqtt. docs/line.md has the topics."""

from __future__ import annotations

import contextlib
import json
import math
import ssl
import threading
import time
from typing import Any

from sprfast.line.sinks.message import Message
from sprfast.system.libraries import require

HEARTBEAT = 0.5  # seconds
KEEPALIVE = 2  # seconds; after one and a half times as many the broker tells the will


class MqttConnection:
    """A `Connection` to a broker. A message counts as given out when the broker says so.

    Each connection has a client of its own: what the old one had not sent is never sent.

    Args:
        host: name or address.
        port: of the broker.
        topic: under which the topics `result` and `state` are.
        user: name and password; None: anonymous.
        tls: with which to connect; None: without TLS.
        timeout: seconds to connect, and for each reply.

    Raises:
        BackendError: paho-mqtt is not installed.
    """

    interval, takes_late = HEARTBEAT, True

    def __init__(
        self,
        host: str,
        port: int,
        topic: str,
        user: tuple[str, str] | None,
        tls: ssl.SSLContext | None,
        timeout: float,
    ) -> None:
        self._mqtt: Any = require("paho.mqtt.client", "mqtt")
        self._packets: Any = require("paho.mqtt.packettypes", "mqtt")
        self._properties: Any = require("paho.mqtt.properties", "mqtt")
        self.name = f"{'mqtt' if tls is None else 'mqtts'} {host}:{port}/{topic}"
        self._host, self._port, self._topic, self._timeout = host, port, topic, timeout
        self._user, self._tls = user, tls
        self._client: Any = None
        self._said: list[str] = []  # by the broker: "" for yes, else why not
        self._news = threading.Event()

    def open(self) -> None:
        """Connect with a will that says that the station is not ready."""
        mqtt = self._mqtt
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
        self._client, self._said = client, []
        self._news.clear()
        if self._user is not None:
            client.username_pw_set(*self._user)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.will_set(f"{self._topic}/state", _state(False), qos=1, retain=True)
        client.connect_timeout = self._timeout
        client.on_connect = lambda _client, _data, _flags, code, _properties: self._hear(code)
        client.connect(self._host, self._port, keepalive=KEEPALIVE)
        client.loop_start()
        if not self._news.wait(self._timeout):
            raise ConnectionError("no reply in time")
        if self._said[0]:
            raise ConnectionError(f"the broker refused the connection: {self._said[0]}")

    def send(self, message: Message) -> None:
        """Publish a result, which the broker throws away when it has become old."""
        properties = self._properties.Properties(self._packets.PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = max(1, math.ceil(message.due - message.taken))
        self._publish("result", json.dumps(message.to_json()), False, properties)

    def idle(self) -> None:
        """Publish that the station is ready."""
        self._publish("state", _state(True), True, None)

    def rest(self) -> None:
        """Publish that it is not."""
        self._publish("state", _state(False), True, None)

    def abort(self) -> None:
        """Break the connection without a goodbye, so that the broker tells the will."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                if (opened := client.socket()) is not None:
                    opened.shutdown(2)
            client.loop_stop()

    def _hear(self, code: Any) -> None:
        self._said.append(str(code) if code.is_failure else "")
        self._news.set()

    def _publish(self, topic: str, text: str, retain: bool, properties: Any) -> None:
        if not self._client.is_connected():  # else the client would keep it for later
            raise ConnectionError("the broker has closed the connection")
        told = self._client.publish(f"{self._topic}/{topic}", text, qos=1, retain=retain, properties=properties)
        told.wait_for_publish(self._timeout)
        if not told.is_published():
            raise ConnectionError("the broker does not confirm a message in time, or has closed the connection")


def _state(ready: bool) -> str:
    return json.dumps({"type": "state", "ready": ready, "time": round(time.time(), 6)})
