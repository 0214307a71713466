"""Serialise forks.

`filelock` 4.3, which the Hub's client uses, refuses a fork while another thread forks (from Python 3.12 on),
and `spaces` forks in each viewer's thread: of two runs that begin at once, one would fail.
"""

import os
import threading
from functools import wraps


def fork_one_at_a_time() -> None:
    """Replace `os.fork` by one that waits until no other thread of this process forks."""
    fork = getattr(os, "fork", None)  # Windows has none
    if fork is None or hasattr(fork, "__wrapped__"):
        return
    lock = threading.Lock()

    @wraps(fork)
    def fork_alone() -> int:
        with lock:  # the child has a copy, which its only thread releases
            return fork()

    os.fork = fork_alone
