"""The server's log: lines of `key=value`, one for each stream opened or closed, none for a frame.

No prompt, image or address is in it, and of a session's key, with which one could take over the session,
only a few letters of its hash.
"""

import hashlib
import logging
import shlex
from typing import Any

log = logging.getLogger("live2diff")


def configure(level: int = logging.INFO) -> None:
    """Write the log to standard error; without this it goes where the program sends its logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def log_event(event: str, **values: Any) -> None:
    """Log one line: the event, then its values."""
    log.info("%s", " ".join([event, *(f"{name}={quoted(value)}" for name, value in values.items())]))


def log_id(key: str) -> str:
    """Return a session's key as it may be logged."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def quoted(value: Any) -> str:
    """Return a value on one line, in quotes where it has spaces."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return shlex.quote("".join(each if each.isprintable() else "?" for each in str(value)))
