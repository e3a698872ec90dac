"""OPC UA, by asyncua: the controller is the server. docs/line.md has the names of the variables."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
from typing import Any

from sprfast.errors import InputError
from sprfast.line.sinks.handshake import Control, Outcome, State
from sprfast.system.libraries import require

CONTROL = ("Trigger", "Ack", "TriggerNumber")
OUTCOME = (("Code", "UInt16"), ("ResultNumber", "UInt16"), ("Ratio", "Float"), ("Id", "String"))
STATE = ("Ready", "Done", "Ok", "Ng", "Error", "Heartbeat")


class Security:
    """Messages that are signed and encrypted by Basic256Sha256. Each argument is PEM or DER.

    Args:
        certificate: of this station, with the URI of its application among its names.
        key: to it, without a password.
        server: the certificate of the controller; no other server is spoken to.

    Raises:
        InputError: one of them is not what it should be; the message begins with its name.
        BackendError: asyncua is not installed.
    """

    def __init__(self, certificate: bytes, key: bytes, server: bytes) -> None:
        self._crypto: Any = require("asyncua.crypto.uacrypto", "plc")
        self._policy: Any = require("asyncua.crypto.security_policies", "plc").SecurityPolicyBasic256Sha256
        x509, serialization = self._crypto.x509, self._crypto.serialization
        own = self._loaded("certificate", certificate, x509.load_pem_x509_certificate, x509.load_der_x509_certificate)
        self._loaded("server", server, x509.load_pem_x509_certificate, x509.load_der_x509_certificate)
        private = serialization.load_pem_private_key, serialization.load_der_private_key
        self._loaded("key", key, *(functools.partial(load, password=None) for load in private))
        try:
            names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (self._uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, x509.ExtensionNotFound) as error:
            raise InputError("certificate: has no URI, or several, among its alternative names") from error
        self._given = [self._properties(each) for each in (certificate, key, server)]

    def apply(self, client: Any) -> None:
        """Have a client connect so."""
        client.application_uri = self._uri
        certificate, key, server = self._given
        client.set_security(self._policy, certificate, key, server_certificate=server)

    def _loaded(self, name: str, content: bytes, pem: Any, der: Any) -> Any:
        try:
            return (pem if _is_pem(content) else der)(content)
        except (ValueError, TypeError) as error:  # TypeError: a key has a password
            raise InputError(f"{name}: cannot be read as PEM or DER without a password") from error

    def _properties(self, content: bytes) -> Any:
        return self._crypto.CertProperties(content, "pem" if _is_pem(content) else "der")


def _is_pem(content: bytes) -> bool:
    return b"-----BEGIN" in content


class OpcUaController:
    """A `Controller` behind OPC UA.

    Args:
        host: name or address.
        port: of the controller.
        path: of the endpoint, "" or with a slash at its begin.
        user: name and password; None: anonymous.
        node: what the node ids of the variables begin with, such as "ns=2;s=Station"; a dot and
            the name follow.
        security: of the connection; None: without encryption.
        timeout: seconds to connect, and for each reply.

    Raises:
        BackendError: asyncua is not installed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        user: tuple[str, str] | None,
        node: str,
        security: Security | None,
        timeout: float,
    ) -> None:
        self._sync: Any = require("asyncua.sync", "plc")
        self._ua: Any = require("asyncua.ua", "plc")
        logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)  # what fails is raised too
        self.name = f"opcua {host}:{port}"
        self._url = f"opc.tcp://{f'[{host}]' if ':' in host else host}:{port}{path}"
        self._user, self._node, self._security, self._timeout = user, node, security, timeout
        self._client: Any = None
        self._nodes: dict[str, Any] = {}

    def open(self) -> None:
        """Connect."""
        self._client = self._sync.Client(self._url, timeout=self._timeout, sync_wrapper_timeout=4 * self._timeout)
        if self._user is not None:
            self._client.set_user(self._user[0])
            self._client.set_password(self._user[1])
        if self._security is not None:
            self._call(self._security.apply, self._client)
        self._call(self._client.connect)
        names = (*CONTROL, *(name for name, _ in OUTCOME), *STATE)
        self._nodes = {name: self._client.get_node(f"{self._node}.{name}") for name in names}

    def read(self) -> Control:
        """What the controller says now."""
        trigger, ack, number = self._call(self._client.read_values, [self._nodes[name] for name in CONTROL])
        if not isinstance(trigger, bool) or not isinstance(ack, bool) or not isinstance(number, int):
            raise ConnectionError("the controller's Trigger, Ack or TriggerNumber is missing or of another type")
        return Control(trigger, ack, number & 0xFFFF)

    def write_outcome(self, outcome: Outcome) -> None:
        """Code, number, ratio and id."""
        values = (int(outcome.code), outcome.number, outcome.ratio, outcome.id)
        self._write({name: (value, kind) for (name, kind), value in zip(OUTCOME, values, strict=True)})

    def write_state(self, state: State) -> None:
        """All bits in one request."""
        self._write({name: (bit, "Boolean") for name, bit in zip(STATE, state.bits(), strict=True)})

    def abort(self) -> None:
        """Break the connection, with its thread."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.disconnect()

    def _write(self, values: dict[str, tuple[object, str]]) -> None:
        variants = [self._ua.Variant(value, getattr(self._ua.VariantType, kind)) for value, kind in values.values()]
        self._call(self._client.write_values, [self._nodes[name] for name in values], variants)

    @staticmethod
    def _call(function: Any, *values: Any) -> Any:
        try:
            return function(*values)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:
            raise ConnectionError("no reply in time") from error
