"""Sinks by their addresses."""

from __future__ import annotations

import re
import ssl
import urllib.parse
from pathlib import Path

from sprfast.data.images import display_name
from sprfast.errors import InputError
from sprfast.line.durations import seconds
from sprfast.line.sinks.courier import Courier
from sprfast.line.sinks.handshake import Handshake
from sprfast.line.sinks.modbus import CONTROL, CONTROLS, STATES, ModbusController
from sprfast.line.sinks.mqtt import MqttConnection
from sprfast.line.sinks.opcua import OpcUaController, Security
from sprfast.line.sinks.sink import Connection, Sink
from sprfast.line.sinks.webhook import WebhookConnection
from sprfast.system.reading import open_regular
from sprfast.system.redaction import redacted

WITHIN = 0.5  # seconds in which an answer must arrive
WEBHOOK_WITHIN = 2.0  # likewise; the query of a web address is the server's, so that it cannot be told there
NODE = "ns=2;s=Station"
FORMS = (
    "modbus://HOST:502?unit=1, opcua://HOST:4840?node=ns=2;s=Station, mqtt://HOST:1883/TOPIC, "
    "mqtts://USER@HOST:8883/TOPIC?password-file=PATH, http://… or https://…"
)


def open_sink(url: str) -> Sink:
    """A sink by its address; it connects in the background, and again whenever it must.

    Args:
        url: `modbus://host:port?unit=1&coils=0&registers=0`, with the controller's device id and
            the addresses of its first coil and register; `opcua://user:password@host:port/path`
            with `?node=` and what the variables' node ids begin with;
            `mqtt://user:password@host:port/topic`; `mqtts://user@host:port/topic`, with TLS, and
            `?ca=` and a file of certificates where the system's are not to be trusted; or the
            address of a web server. OPC UA and MQTT take `password-file` for a password, and OPC UA
            the files `certificate`, `key` and `server` of `Security`. All but web servers take
            `within`, the seconds in which a result must arrive, 0.5 by default. Modbus and OPC UA
            take `skew`, the seconds that a picture and its TRIGGER are apart at most.

    Returns:
        The sink. Close it.

    Raises:
        InputError: the address cannot be used; the message shows it without password.
        BackendError: the library for it is not installed.

    Example:
        >>> sink = open_sink("modbus://192.168.0.10?unit=1")  # doctest: +SKIP
        >>> with Line(engine, sink.deliver, deadline=0.08) as line:  # doctest: +SKIP
        ...     line.run(camera)
    """
    given = _Address(url)
    if given.scheme in {"http", "https"}:
        return Courier(given.webhook(), WEBHOOK_WITHIN)
    kinds = {
        "modbus": given.modbus,
        "opcua": given.opcua,
        "opc.tcp": given.opcua,
        "mqtt": given.mqtt,
        "mqtts": given.mqtts,
    }
    if given.scheme not in kinds:
        raise given.refusal("is of no known kind")
    within = seconds("within", given.number("within", WITHIN), zero=False)
    connection = kinds[given.scheme](within)
    given.check_all_used()
    return Courier(connection, within)


class _Address:
    """The parts of an address, each of which must be used."""

    def __init__(self, url: str) -> None:
        self._shown = display_name(redacted(url))
        try:
            self._parts = urllib.parse.urlsplit(url)
            self._port = self._parts.port
            query = urllib.parse.parse_qsl(self._parts.query, keep_blank_values=True, max_num_fields=20)
        except ValueError as error:
            raise self.refusal("cannot be read") from error
        self.scheme = self._parts.scheme
        self._query = dict(query)
        if not self._parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
            raise self.refusal("names no host" if not self._parts.hostname else "has a blank in it")
        self._host = self._parts.hostname
        if self.scheme not in {"http", "https"} and (len(query) != len(self._query) or self._parts.fragment):
            raise self.refusal("says something twice, or has a #")

    def refusal(self, why: str) -> InputError:
        return InputError(f"sink {self._shown}: {why}; expected one of {FORMS}")

    def number(self, name: str, default: float) -> float:
        text = self._query.pop(name, None)
        try:
            return default if text is None else float(text)
        except ValueError as error:
            raise self.refusal(f"{name} is no number") from error

    def skew(self) -> float | None:
        given = self.number("skew", 0.0) if "skew" in self._query else None
        return None if given is None else seconds("skew", given, zero=False)

    def whole(self, name: str, default: int, most: int) -> int:
        text = self._query.pop(name, str(default))
        if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > most:
            raise self.refusal(f"{name} is no whole number from 0 to {most}")
        return int(text)

    def check_all_used(self) -> None:
        if self._query:
            raise self.refusal(f"{next(iter(self._query))!r} is not known")

    def modbus(self, within: float) -> Connection:
        if self._parts.path not in {"", "/"} or self._parts.username is not None:
            raise self.refusal("Modbus has no path, user or password")
        unit = self.whole("unit", 1, 255)
        coils = self.whole("coils", 0, 2**16 - STATES)
        registers = self.whole("registers", 0, 2**16 - CONTROL - CONTROLS)
        controller = ModbusController(self._host, self._port or 502, unit, coils, registers, within)
        return Handshake(controller, within, self.skew())

    def opcua(self, within: float) -> Connection:
        node = self._query.pop("node", NODE)
        if not re.fullmatch(r"(ns=\d{1,5};)?s=.+", node):
            raise self.refusal("node is no node id of the form ns=2;s=NAME")
        path = "" if self._parts.path == "/" else self._parts.path
        user, security = self._user(self._query.pop("password-file", None)), self._security()
        controller = OpcUaController(self._host, self._port or 4840, path, user, node, security, within)
        return Handshake(controller, within, self.skew())

    def mqtt(self, within: float) -> Connection:
        return self._mqtt(1883, None, within)

    def mqtts(self, within: float) -> Connection:
        if self._parts.password is not None:
            raise self.refusal("others can see a password in an address; put it in a file, with password-file=PATH")
        return self._mqtt(8883, self._tls(self._query.pop("ca", None)), within)

    def _mqtt(self, port: int, tls: ssl.SSLContext | None, within: float) -> Connection:
        topic = urllib.parse.unquote(self._parts.path).strip("/")
        if not topic or re.search(r"[+#\x00]", topic):
            raise self.refusal("needs a topic without + and #")
        user = self._user(self._query.pop("password-file", None))
        return MqttConnection(self._host, self._port or port, topic, user, tls, within)

    def webhook(self) -> Connection:
        target = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        return WebhookConnection(self.scheme == "https", self._host, self._port, target, self._user(), WEBHOOK_WITHIN)

    def _user(self, file: str | None = None) -> tuple[str, str] | None:
        """Name and password, which may be the first line of a file."""
        if file is not None and (not self._parts.username or self._parts.password is not None):
            raise self.refusal("password-file needs a user, and no password beside it")
        if self._parts.username is None:
            return None
        password = urllib.parse.unquote(self._parts.password or "")
        if file is not None:
            password = next(iter(self._text("password-file", file).splitlines()), "")
        return urllib.parse.unquote(self._parts.username), password

    def _tls(self, ca: str | None) -> ssl.SSLContext:
        if ca is None:
            return ssl.create_default_context()
        try:
            return ssl.create_default_context(cadata=self._text("ca", ca) or "empty")
        except ssl.SSLError as error:
            raise self.refusal(f"ca: {display_name(ca)} holds no certificates in PEM") from error

    def _security(self) -> Security | None:
        names = ("certificate", "key", "server")
        paths = {name: self._query.pop(name) for name in names if name in self._query}
        if not paths:
            return None
        if len(paths) < len(names):
            raise self.refusal("certificate, key and server are given together")
        try:
            return Security(**{name: self._content(name, path) for name, path in paths.items()})
        except InputError as error:
            raise self.refusal(str(error)) from error

    def _text(self, name: str, path: str) -> str:
        try:
            return self._content(name, path).decode()
        except UnicodeDecodeError as error:
            raise self.refusal(f"{name}: {display_name(path)} is no text") from error

    def _content(self, name: str, path: str) -> bytes:
        try:
            with open_regular(Path(path)) as stream:
                return stream.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise self.refusal(f"{name}: {display_name(path)} cannot be read ({reason})") from error
