"""Who may see a station's page, and who may push its buttons."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping


class Access:
    """Says why a request is refused.

    Buttons need the token, and so does everything on a page that other machines reach. A browser
    that was led here from another site is refused by the names it sends: a foreign site can make
    its own name mean this machine, yet not an address.

    Args:
        host: that the page is bound to.
    """

    def __init__(self, host: str) -> None:
        self.token = secrets.token_urlsafe(24)
        self.local = _is_loopback(host)
        self._names = {"localhost", host.lower()}
        if not self.local:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def refusal(self, headers: Mapping[str, str], token: str | None, acting: bool) -> str:
        """Why, in a sentence; "" for a request that may go on.

        Args:
            headers: by name in lower case.
            token: that was given; None: none was.
            acting: it would change something.
        """
        host = headers.get("host", "")
        if not self._is_own(host):
            return f"this page is not known as {host[:80]!r}; use its address"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return f"requests from {origin[:80]!r} are not taken"
        if self.local and not acting:
            return ""
        if not hmac.compare_digest((token or "").encode(), self.token.encode()):
            return "the token is missing or wrong; open the address that the station printed at its start"
        return ""

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.strip("[]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback if self.local else True


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
