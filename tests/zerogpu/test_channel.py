"""Pipes between the process of a session and the one that has the GPU."""

import multiprocessing

import numpy as np
import pytest

from live2diff.errors import EngineBusy
from live2diff.zerogpu.channel import PipeEnd, PipePool

LARGE = np.arange(3_000_000, dtype=np.uint8)  # more than any socket's buffer holds


def never() -> bool:
    return False


def receive(end: PipeEnd, run: int) -> object:
    """Wait for the next message of a run."""
    while (message := end.receive(run)) is None:
        pass
    return message


def test_messages_of_any_size_cross_a_fork_whole_and_in_order():
    pool = PipePool(1)
    here, there = pool.ends[0]

    def echo() -> None:
        for _ in range(3):
            there.send(7, receive(there, 7), never)

    process = multiprocessing.get_context("fork").Process(target=echo)
    process.start()
    for message in ("open", LARGE, {"frames_in": 1}):
        assert here.send(7, message, never)
        np.testing.assert_array_equal(receive(here, 7), message)
    process.join()
    assert process.exitcode == 0


def test_messages_of_another_run_are_discarded():
    here, there = PipePool(1).ends[0]
    here.send(1, "a secret", never)
    here.send(2, "mine", never)
    assert receive(there, 2) == "mine"
    assert there.receive(1) is None


def test_a_pipe_is_empty_for_its_next_run_even_of_half_a_message():
    pool = PipePool(1)
    number, index = pool.take()
    here, there = pool.ends[index]
    assert not here.send(number, LARGE, lambda: True), "the other end reads nothing, and the run is over"
    assert there.receive(number) is None
    there.send(number, "an answer that nobody reads", never)
    with pytest.raises(EngineBusy):
        pool.take()
    pool.give_back(index)
    again, index = pool.take()
    assert again != number
    here.send(again, "mine", never)
    there.send(again, "yours", never)
    assert (receive(there, again), receive(here, again)) == ("mine", "yours")
