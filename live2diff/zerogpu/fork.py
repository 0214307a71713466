"""Forks one after the other.

`filelock`, which the Hub's client uses, refuses a fork while another thread forks (4.3, from Python 3.12
on), and `spaces` forks in the thread of each viewer: of two who ask at once, one would get an error.
"""

import os
import threading
from functools import wraps


def fork_one_at_a_time() -> None:
    """Have `os.fork` wait until no other thread of this process forks."""
    fork = getattr(os, "fork", None)  # Windows has none
    if fork is None or hasattr(fork, "__wrapped__"):
        return
    lock = threading.Lock()

    @wraps(fork)
    def fork_alone() -> int:
        with lock:  # the child has a copy, which its only thread releases
            return fork()

    os.fork = fork_alone
