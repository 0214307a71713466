"""Helpers for `concurrent.futures.Future`."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any


def resolved(result: Any) -> Future:
    """Return a future that is done, with this result."""
    future: Future = Future()
    future.set_result(result)
    return future


def fail(future: Future, error: BaseException) -> None:
    """Set the exception of a future, unless it is done."""
    with suppress(InvalidStateError):
        future.set_exception(error)


def follow(first: Future, other: Future) -> None:
    """Copy the outcome of `first` to `other` once `first` is done."""

    def copy(done: Future) -> None:
        with delivering(other):
            other.set_result(done.result())

    first.add_done_callback(copy)


@contextmanager
def delivering(future: Future) -> Iterator[None]:
    """Set an exception raised inside on the future, as an executor does."""
    try:
        yield
    except BaseException as error:
        fail(future, error)


class SharedCalls:
    """A thread pool in which callers of a function with the same arguments share one call while it runs."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._running: dict[tuple, Future] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call a function; each caller has a future of its own and may cancel it without harm to others."""
        own, call = Future(), (function, *arguments)
        with self._lock:
            if call not in self._running:
                self._running[call] = self._threads.submit(self._run, call)
            shared = self._running[call]
        follow(shared, own)
        return own

    def shutdown(self) -> None:
        """Cancel the calls that have not begun; do not wait for the others."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, call: tuple) -> Any:
        function, *arguments = call
        try:
            return function(*arguments)
        finally:
            with self._lock:
                del self._running[call]
