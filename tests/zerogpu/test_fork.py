"""Forks of several threads, with a fork that the test holds back."""

import os
import threading

import pytest
from helpers.waiting import wait_for

from live2diff.zerogpu.fork import fork_one_at_a_time


@pytest.fixture
def forks(monkeypatch):
    """Replace `os.fork`; return the forks that have begun, each of which ends once its event is set."""
    begun: list[threading.Event] = []

    def fork() -> int:
        begun.append(threading.Event())
        begun[-1].wait()
        return 1

    monkeypatch.setattr(os, "fork", fork)
    return begun


def test_a_fork_waits_for_that_of_another_thread(forks):
    for _ in range(2):
        fork_one_at_a_time()  # a second call changes nothing
    threads = [threading.Thread(target=os.fork, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for count in (1, 2, 3):
        wait_for(lambda count=count: len(forks) == count)
        threads[0].join(0.05)
        assert len(forks) == count
        forks[-1].set()
    for thread in threads:
        thread.join()


def test_a_child_can_fork_again(monkeypatch):
    monkeypatch.setattr(os, "fork", os.fork)
    fork_one_at_a_time()
    if (child := os.fork()) == 0:
        grandchild = os.fork()
        os._exit(0 if grandchild == 0 else os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
