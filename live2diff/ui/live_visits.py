"""What stays of a viewer whose connection was cut: the key in the line, and the count of the address.

The stream does not: the page sends the last frames again, and a new one warms up from them.
"""

import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from ..serving.admission import HELD_SECONDS, WaitingLine
from ..serving.limits import Counts

MOST_HELD = 100  # visits without a connection; of more, the places are given up at once


class Connection(Protocol):
    """What is called of a visit's connection."""

    def drop(self) -> None:
        """Close the connection and its stream at once."""


@dataclass(eq=False)
class Visit:
    """A viewer's visit, over one connection after another."""

    connection: Connection | None = None
    key: str = field(default_factory=lambda: f"live/{secrets.token_urlsafe(16)}")  # in engine and line
    token: str = ""  # lets the next connection go on
    held_until: float = 0.0  # without a connection
    counted: ExitStack = field(default_factory=ExitStack)  # the address; closed when the visit ends


class Visits:
    """The visits of all viewers; to be called on one thread.

    A token is random, good for one connection, and replaced at each start. It is good while the visit lasts,
    and for HELD_SECONDS after a cut.
    """

    def __init__(self, counts: Counts, line: WaitingLine) -> None:
        self.counts, self.line = counts, line
        self._by_token: dict[str, Visit] = {}

    def enter(self, token: str, address: str | None) -> Visit:
        """Return the visit of a token, whose address is counted already, or else a new one.

        Raises:
            LimitReached: the address has too many.
        """
        self._end_expired()
        visit = self._by_token.pop(token, None)
        if visit is None:
            visit = Visit()
            visit.counted.enter_context(self.counts.one_more(address))
        elif visit.connection is not None:  # it is dead, but the server has not noticed yet
            former, visit.connection = visit.connection, None
            former.drop()
        return visit

    def new_token(self, visit: Visit) -> str:
        """Replace the token of a visit."""
        self.revoke(visit)
        visit.token = secrets.token_urlsafe(32)
        self._by_token[visit.token] = visit
        return visit.token

    def revoke(self, visit: Visit) -> None:
        """Make the token of a visit useless."""
        self._by_token.pop(visit.token, None)

    def hold(self, visit: Visit) -> None:
        """Keep the place of a visit whose connection was cut, until its token comes or the time is over."""
        visit.connection = None
        visit.held_until = self.line.clock() + HELD_SECONDS
        self.line.hold(visit.key)
        held = [each for each in self._by_token.values() if each.connection is None]
        if len(held) > MOST_HELD or visit not in held:  # its token is used up
            self.end(visit)

    def end(self, visit: Visit) -> None:
        """End a visit: nothing of it is kept."""
        self.revoke(visit)
        self.line.leave(visit.key)
        visit.counted.close()

    def _end_expired(self) -> None:
        now = self.line.clock()
        for visit in list(self._by_token.values()):
            if visit.connection is None and now > visit.held_until:
                self.end(visit)
