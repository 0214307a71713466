"""Connect to the process that has the GPU by pipes, made before any fork and lent to runs.

Every message carries the number of its run. Both ends stay open in every forked process, so there is no end
of file when a process dies: a read or write gives up after POLL_SECONDS, and its caller decides whether to
go on.
"""

import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from ..errors import EngineBusy

HEADER = struct.Struct("=QQ")  # the run's number, bytes of the message
POLL_SECONDS = 0.1
CHUNK = 1 << 18  # bytes


class PipeEnd:
    """One end of a pipe, for picklable messages."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(POLL_SECONDS)
        self._socket = end
        self._buffer = bytearray()  # the beginning of a message

    def send(self, run: int, message: Any, is_over: Callable[[], bool]) -> bool:
        """Send a message; return False if `is_over()` is true while the other end does not read."""
        data = pickle.dumps(message)
        rest = memoryview(HEADER.pack(run, len(data)) + data)
        while rest:
            try:
                rest = rest[self._socket.send(rest[:CHUNK]) :]
            except TimeoutError:
                if is_over():
                    return False
        return True

    def receive(self, run: int) -> Any:
        """Return the next message of a run, None if it is incomplete; discard those of other runs."""
        try:
            self._buffer += self._socket.recv(CHUNK)
        except TimeoutError:
            return None
        while len(self._buffer) >= HEADER.size:
            number, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return None
            data = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            if number == run:
                return pickle.loads(data)
        return None

    def forget(self) -> None:
        """Discard the beginning of a message that an earlier run may have left in this process."""
        self._buffer.clear()

    def drain(self) -> None:
        """Discard everything sent to this end so far."""
        try:
            while self._socket.recv(CHUNK):
                pass
        except TimeoutError:
            self.forget()


class PipePool:
    """Pipes between this process and those forked from it later."""

    def __init__(self, pipes: int) -> None:
        pairs = [socket.socketpair() for _ in range(pipes)]
        self.ends = [(PipeEnd(here), PipeEnd(there)) for here, there in pairs]
        self.free = deque(range(pipes))
        self._numbers = count(1)

    def take(self) -> tuple[int, int]:
        """Return the number of a new run, and the index of its pipe until `give_back`.

        Raises:
            EngineBusy: all pipes are in use.
        """
        if not self.free:
            raise EngineBusy("All places are taken. Try again in a minute.")
        return next(self._numbers), self.free.popleft()

    def give_back(self, index: int) -> None:
        """Empty a pipe, which nobody uses any more, for the next run."""
        for end in self.ends[index]:
            end.drain()
        self.free.append(index)
