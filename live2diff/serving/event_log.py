"""What the server writes down: lines of `key=value`, one for a stream opened or closed, none for a frame.

No prompt, picture or address of anybody is in it, and of a visitor's key, with which one could take over the
visit, only a few letters of its hash.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from typing import Any

log = logging.getLogger("live2diff")


def configure(level: int = logging.INFO) -> None:
    """Write it to standard error. Without this, it goes wherever the program sends what is logged."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def log_event(event: str, **facts: Any) -> None:
    """One line: the event, then what there is to say of it."""
    log.info("%s", " ".join([event, *(f"{name}={written(fact)}" for name, fact in facts.items())]))


def log_id(key: str) -> str:
    """A visitor's key as it may be written down."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def written(fact: Any) -> str:
    """A value on one line, in quotes where it has spaces."""
    if isinstance(fact, float):
        return f"{fact:.2f}"
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in str(fact)))
