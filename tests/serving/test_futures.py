"""Calls that several callers share."""

import threading

import pytest
from helpers.waiting import PATIENCE

from live2diff.serving.futures import SharedCalls


class Download:
    """A download that lasts until the test lets it go on; its result is its number."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.go_on = threading.Event()

    def __call__(self, name: str) -> int:
        self.numbers.append(len(self.numbers))
        assert self.go_on.wait(PATIENCE)
        if name == "broken":
            raise OSError("no network")
        return self.numbers[-1]


def test_a_call_is_shared_while_it_runs_and_its_callers_cancel_for_themselves():
    calls, download = SharedCalls(threads=2, name="test"), Download()
    futures = [calls.submit(download, "big") for _ in range(5)]
    assert all(future.cancel() for future in futures[:4])
    download.go_on.set()
    assert futures[4].result(PATIENCE) == 0 and download.numbers == [0]
    assert calls.submit(download, "big").result(PATIENCE) == 1
    calls.shutdown()


def test_an_error_of_a_shared_call_reaches_every_caller():
    calls, download = SharedCalls(threads=1, name="test"), Download()
    futures = [calls.submit(download, "broken") for _ in range(2)]
    download.go_on.set()
    for future in futures:
        with pytest.raises(OSError, match="no network"):
            future.result(PATIENCE)
    calls.shutdown()
