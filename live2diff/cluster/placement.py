"""Choose workers for streams: pure functions over what the front knows of its workers."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerState:
    """The facts about one worker that placement needs.

    All streams of a worker share its weights; they may change while it has no stream.

    Attributes:
        slots: how many streams it has room for, as measured on its device.
        streams: how many it has, reserved ones included.
        weights: a name of the active weights; None for the model's own.
        draining: whether its streams are being moved away.
        suspect: whether it is slow to answer, or not ready.
    """

    key: str
    slots: int
    streams: int
    weights: str | None
    draining: bool = False
    suspect: bool = False

    @property
    def is_available(self) -> bool:
        """Whether it may be given streams at all."""
        return not (self.draining or self.suspect)

    def room(self, weights: str | None) -> int:
        """Return how many more streams with these weights it can take."""
        shareable = self.is_available and (self.streams == 0 or self.weights == weights)
        return max(0, self.slots - self.streams) if shareable else 0


def place(workers: Sequence[WorkerState], weights: str | None) -> str | None:
    """Return the key of the worker for a new stream with these weights; None if none has room.

    The least loaded worker on which the weights are active comes first, then one without streams, whose
    weights can change. Other workers cannot take the stream.
    """
    options = [worker for worker in workers if worker.room(weights)]
    best = min(options, key=lambda w: (w.weights != weights, w.streams / w.slots, w.key), default=None)
    return best and best.key


def wanted_workers(streams: int, waiting: int, slots: int) -> int:
    """Return how many workers to request: enough for all streams and waiting viewers, and one spare.

    Raises:
        ValueError: `slots`, the streams of one worker, is below 1.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}; a worker has room for one stream at least.")
    return -(-(streams + waiting) // slots) + 1


def drain_candidate(workers: Sequence[WorkerState]) -> str | None:
    """Return the key of the worker to give back: the emptiest whose streams fit on the others, or None."""
    available = [worker for worker in workers if worker.is_available]
    for worker in sorted(available, key=lambda w: (w.streams, w.key)):
        others = [other for other in available if other is not worker]
        if others and sum(other.room(worker.weights) for other in others) >= worker.streams:
            return worker.key
    return None
