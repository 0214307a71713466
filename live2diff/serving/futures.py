"""Helpers for `concurrent.futures.Future`."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any


def resolved(result: Any) -> Future:
    """Return a future that has this result."""
    future: Future = Future()
    future.set_result(result)
    return future


def fail(future: Future, error: BaseException) -> None:
    """Set the exception of a future, unless it is done."""
    with suppress(InvalidStateError):
        future.set_exception(error)


def follow(first: Future, other: Future) -> None:
    """Resolve `other` as `first` is resolved."""

    def copy(done: Future) -> None:
        with delivering(other):
            other.set_result(done.result())

    first.add_done_callback(copy)


@contextmanager
def delivering(future: Future) -> Iterator[None]:
    """Route exceptions to the given future, as an executor does."""
    try:
        yield
    except BaseException as error:
        fail(future, error)


class SharedCalls:
    """Calls in threads; callers of the same function with the same arguments share one while it runs."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._running: dict[tuple, Future] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call a function; the future is the caller's own, and may be cancelled without harm to others."""
        own, call = Future(), (function, *arguments)
        with self._lock:
            if call not in self._running:
                self._running[call] = self._threads.submit(self._run, call)
            shared = self._running[call]
        follow(shared, own)
        return own

    def shutdown(self) -> None:
        """Cancel what has not begun; wait for nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, call: tuple) -> Any:
        function, *arguments = call
        try:
            return function(*arguments)
        finally:
            with self._lock:
                del self._running[call]
