"""Run GPU sessions of a ZeroGPU engine in tests."""

import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.queues import SimpleQueue

import pytest
from helpers.waiting import PATIENCE

from live2diff.zerogpu.engine import GpuSession, ZeroGpuEngine, wrap_gpu
from live2diff.zerogpu.worker import Job


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def visiting(engine: ZeroGpuEngine, key: str) -> Iterator[threading.Event]:
    """Run a GPU session until the block ends, or until it ends by itself, which sets the event."""
    leave, over = threading.Event(), threading.Event()
    session = engine.registry.get(key)
    assert isinstance(session, GpuSession)

    def visit() -> None:
        with closing(engine.gpu_session(key)) as seconds_left:
            for _ in seconds_left:
                if leave.is_set():
                    break
        if (run := session.run) is not None:
            run.done.wait(PATIENCE)
        over.set()

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield over
    finally:
        leave.set()
        thread.join(PATIENCE)
        assert over.is_set() and session.run is None


def in_forked_process(task: Callable[[Job], Generator[str]], seconds: Callable[[Job], int]) -> Callable:
    """Run a task as `spaces` does, in place of `wrap_gpu`; see spaces/zero/wrappers.py.

    A process is forked for the call, arguments and results are pickled through pipes, the generator runs in a
    thread there, and a stop event is read after each yield.
    """

    context = multiprocessing.get_context("fork")  # not at import: some systems have none

    def work(arguments: SimpleQueue, results: SimpleQueue, stop) -> None:
        def iterate() -> None:
            generator = task(*arguments.get())
            for result in generator:
                if stop.is_set():
                    generator.close()
                    break
                results.put(result)

        with ThreadPoolExecutor() as executor:
            done = executor.submit(iterate)
        results.put(done.exception())

    def call(*arguments: Job) -> Iterator[str]:
        assert seconds(*arguments) > 0
        stop, asked, results = context.Event(), SimpleQueue(ctx=context), SimpleQueue(ctx=context)
        process = context.Process(target=work, args=(asked, results, stop), daemon=True)
        process.start()
        asked.put(arguments)
        try:
            while isinstance(result := results.get(), str):
                yield result
            if result is not None:
                raise result
        finally:
            stop.set()
            process.join(PATIENCE)
            assert process.exitcode == 0

    return call


both_ways = pytest.mark.parametrize(
    "engine", [wrap_gpu, in_forked_process], indirect=True, ids=["thread", "fork"]
)
