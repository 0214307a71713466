"""Log events as lines of `key=value`: streams opened and closed, not single frames.

The log holds no prompt, image or address. A session's key would let anybody take the session over: only the
beginning of its hash is logged.
"""

import hashlib
import logging
import shlex
from typing import Any

log = logging.getLogger("live2diff")


def configure(level: int = logging.INFO) -> None:
    """Write the log to standard error; otherwise it goes where the program sends its logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def log_event(event: str, **values: Any) -> None:
    """Log an event and its values in one line."""
    log.info("%s", " ".join([event, *(f"{name}={quoted(value)}" for name, value in values.items())]))


def log_id(key: str) -> str:
    """Return an identifier of a session that may be logged: the beginning of its key's hash."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def quoted(value: Any) -> str:
    """Format a value on one line, quoted as for a shell."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return shlex.quote("".join(each if each.isprintable() else "?" for each in str(value)))
