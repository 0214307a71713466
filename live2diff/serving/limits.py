"""Limit the sessions, clips and traffic of one address, and determine the address of a request."""

import ipaddress
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import LimitReached

SOCKETS_AT_ONCE = 200  # in all; more are refused before they cost anything
MESSAGES_A_SECOND = 200.0  # of a socket; a faster one is throttled
BYTES_A_SECOND = 8_000_000.0  # likewise; 60 frames a second at 384 pixels have 1.2 million
BURST_SECONDS = 2.0  # of either rate may come at once
SILENT_SECONDS = 300.0  # a socket outside the line that sends nothing for so long is closed
TAKEN_SECONDS = 10.0  # a socket that does not accept a message within this time is closed


@dataclass(frozen=True)
class VisitorLimits:
    """The limits that the operator can set."""

    visits: int = 4  # live sessions from one address at once, waiting ones included
    clips: int = 2  # clips from one address at once, likewise
    turn_seconds: float = 120.0  # how long a live session may last while others wait

    def __post_init__(self) -> None:
        """Check the limits."""
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"The limit {name} is {value}; it must be above 0.")

    def in_words(self) -> str:
        """Describe the limits of the Live tab."""
        return (
            f"Stay as long as you like; once others wait, a turn lasts {self.turn_seconds:.0f} seconds. "
            f"At most {self.visits} visits at once from one address."
        )


class Counts:
    """A limited count for each address. Thread-safe."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def one_more(self, address: str | None) -> Iterator[None]:
        """Count one more for an address while the context lasts; None is not counted.

        Raises:
            LimitReached: the address is at its limit.
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
                self._counts += Counter()  # drops addresses with a count of 0


def trusted_proxies() -> int:
    """Return LIVE2DIFF_TRUSTED_PROXIES, how many proxies with public addresses lead to a Space, at least 1.

    Each appends the address that called it to `X-Forwarded-For`. With too low a number all viewers share one
    limit; with too high a number viewers can forge their address.

    Raises:
        ValueError: it is not a whole number.
    """
    text = os.environ.get("LIVE2DIFF_TRUSTED_PROXIES", "1")
    try:
        return max(1, int(text))
    except ValueError:
        raise ValueError(
            f"LIVE2DIFF_TRUSTED_PROXIES is {text!r}. Set it to a whole number, for example 2, or remove it."
        ) from None


def visitor_address(headers: Mapping[str, str], peer: str | None) -> str | None:
    """Return the address of a request's sender; None for this machine, as its proxies may serve anybody.

    `X-Forwarded-For` is trusted on a Space only, and there only the public address that the first trusted
    proxy appended: a viewer can forge those before it.
    """
    if not os.environ.get("SPACE_ID"):
        return parse_address(peer or "", allow_private=True)
    forwarded = [parse_address(text.strip()) for text in headers.get("x-forwarded-for", "").split(",")]
    addresses = [address for address in forwarded if address]
    return addresses[-min(trusted_proxies(), len(addresses))] if addresses else None


def parse_address(text: str, allow_private: bool = False) -> str | None:
    """Return a valid public address (of IPv6 its /64 network), else None; a private one where allowed."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_loopback or not (allow_private or address.is_global):
        return None
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
