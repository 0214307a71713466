"""Helpers for `concurrent.futures.Future`."""

from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
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
