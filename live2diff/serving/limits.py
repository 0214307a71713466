"""What one visitor may have of a server that others use too, and whom the server takes for one visitor."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import LimitReached

SOCKETS_AT_ONCE = 200  # of everybody; more are refused before they cost anything
MESSAGES_A_SECOND = 200.0  # of a socket; whoever sends more is read more slowly
BYTES_A_SECOND = 8_000_000.0  # 60 frames a second of 384 pixels have 1.2 million
BURST_SECONDS = 2.0  # of either may come at once
SILENT_SECONDS = 300.0  # a socket that neither waits in line nor says anything for so long is closed
TAKEN_SECONDS = 10.0  # whoever does not take what is sent for so long is cut off


@dataclass(frozen=True)
class VisitorLimits:
    """What the operator can set.

    Attributes:
        visits: live visits from one address at once, those who wait in line included.
        clips: clips from one address at once, likewise.
        turn_seconds: how long a live visit may last while others wait.
    """

    visits: int = 4
    clips: int = 2
    turn_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("visits", "clips", "turn_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"The limit {name} is {getattr(self, name)}; it must be above 0.")

    def in_words(self) -> str:
        """Those of the Live tab."""
        return (
            f"Stay as long as you like; once others wait, a turn lasts {self.turn_seconds:.0f} seconds. "
            f"At most {self.visits} visits at once from one address."
        )


class Counts:
    """How many of something each address has. Thread-safe."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def one_more(self, address: str | None) -> Iterator[None]:
        """While it lasts, `address` has one more; who is nobody in particular is not counted.

        Raises:
            LimitReached: it has as many already.
        """
        if address is None:
            yield
            return
        with self._lock:
            if self._counts[address] >= self._most:
                raise LimitReached(
                    f"There are {self._most} {self._what} from your address already. End one of them first."
                )
            self._counts[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[address] -= 1
                if not self._counts[address]:
                    del self._counts[address]


def visitor_address(headers: Mapping[str, str], peer: str | None) -> str | None:
    """Whom a request comes from, as far as one can know; None for this machine itself and for tunnels and
    proxies on it, which may stand for anybody.

    Only on a Space is `X-Forwarded-For` believed, and of it the last public address: that one was written by
    the Space's own proxy, those before it may be made up.
    """
    if os.environ.get("SPACE_ID"):
        said = [public(text.strip()) for text in headers.get("x-forwarded-for", "").split(",")]
        return next((address for address in reversed(said) if address), None)
    return public(peer or "", private_too=True)


def public(text: str, private_too: bool = False) -> str | None:
    """The address if it is one; of IPv6 the network, as a household has as many addresses as it likes."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or not (private_too or address.is_global):
        return None
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
