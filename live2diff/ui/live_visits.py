"""Keep a visit after its connection was cut: its place in line, and the count of its address.

The stream is not kept: the page sends the last frames again, and a new stream warms up from them.
"""

import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from ..serving.admission import HELD_SECONDS, WaitingLine
from ..serving.limits import Counts

MOST_HELD = 100  # visits kept without a connection; the places of further ones are given up at once


class Connection(Protocol):
    """The connection of a visit, as `Visits` uses it."""

    def drop(self) -> None:
        """Close the connection and its stream at once."""


@dataclass(eq=False)
class Visit:
    """A viewer's visit, over one connection after another."""

    connection: Connection | None = None
    key: str = field(default_factory=lambda: f"live/{secrets.token_urlsafe(16)}")  # in engine and line
    token: str = ""  # with which the next connection resumes the visit
    held_until: float = 0.0  # on the clock of the line, while there is no connection
    counted: ExitStack = field(default_factory=ExitStack)  # the address; closed when the visit ends


class Visits:
    """Manage the visits of all viewers; not thread-safe.

    A token is random, valid for one connection, and replaced at each start. It is valid while the visit
    lasts, and for HELD_SECONDS after a cut.
    """

    def __init__(self, counts: Counts, line: WaitingLine) -> None:
        self.counts, self.line = counts, line
        self._by_token: dict[str, Visit] = {}

    def enter(self, token: str, address: str | None) -> Visit:
        """Return the visit that a token belongs to, else a new one, counted for the address.

        Raises:
            LimitReached: the address has too many visits.
        """
        self._end_expired()
        visit = self._by_token.pop(token, None)
        if visit is None:
            visit = Visit()
            visit.counted.enter_context(self.counts.one_more(address))
        elif visit.connection is not None:  # a dead one that the server has not noticed yet
            former, visit.connection = visit.connection, None
            former.drop()
        return visit

    def new_token(self, visit: Visit) -> str:
        """Replace the token of a visit; return the new one."""
        self.revoke(visit)
        visit.token = secrets.token_urlsafe(32)
        self._by_token[visit.token] = visit
        return visit.token

    def revoke(self, visit: Visit) -> None:
        """Invalidate the token of a visit."""
        self._by_token.pop(visit.token, None)

    def hold(self, visit: Visit) -> None:
        """Keep the place of a visit whose connection was cut, for HELD_SECONDS or until it is resumed."""
        visit.connection = None
        visit.held_until = self.line.clock() + HELD_SECONDS
        self.line.hold(visit.key)
        held = [each for each in self._by_token.values() if each.connection is None]
        if len(held) > MOST_HELD or visit not in held:  # without a valid token it cannot be resumed
            self.end(visit)

    def end(self, visit: Visit) -> None:
        """End a visit; keep nothing of it."""
        self.revoke(visit)
        self.line.leave(visit.key)
        visit.counted.close()

    def _end_expired(self) -> None:
        now = self.line.clock()
        for visit in list(self._by_token.values()):
            if visit.connection is None and now > visit.held_until:
                self.end(visit)
