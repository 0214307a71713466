"""Request as many workers from Ray as viewers need, and name the one to drain when there are too many."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from .placement import WorkerState, drain_candidate, wanted_workers
from .ray_session import WorkerResources

SCALE_SECONDS = 15.0  # between two updates
SPARE_SECONDS = 600.0  # a worker drains after being spare for this long


class Autoscaler:
    """Adapt the number of workers to the viewers.

    More workers are requested at once. Workers drain, the emptiest first and one at each update, only when
    fewer were wanted all through the last `spare_seconds`.

    Args:
        request: called with the total number of workers when it changes; see `ray_request`.
        spare_seconds: how long a worker must have been spare.
        clock: returns seconds.

    Attributes:
        requested: how many workers were requested last.
    """

    def __init__(
        self,
        request: Callable[[int], None],
        spare_seconds: float = SPARE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request, self._spare_seconds, self._clock = request, spare_seconds, clock
        self._slots = 1  # of the smallest worker seen last
        self.requested = 0
        self._began = clock()
        # (when, how many): the wanted workers of the last `spare_seconds`, as a falling sequence.
        self._wanted: deque[tuple[float, int]] = deque()

    def update(self, workers: Sequence[WorkerState], waiting: int) -> str | None:
        """Request workers for the streams and for `waiting` viewers; return the worker to drain now, if any.

        Call it every SCALE_SECONDS.
        """
        now = self._clock()
        self._slots = min((worker.slots for worker in workers if worker.slots), default=self._slots)
        wanted = wanted_workers(sum(worker.streams for worker in workers), waiting, self._slots)
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - self._spare_seconds:
            self._wanted.popleft()
        if wanted != self.requested:
            self._request(wanted)
            self.requested = wanted  # not earlier: if Ray does not answer, it is asked again
        most = self._wanted[0][1]  # of the last `spare_seconds`
        available = sum(worker.is_available for worker in workers)
        is_spare = now - self._began >= self._spare_seconds and available > most
        return drain_candidate(workers) if is_spare else None


def ray_request(resources: WorkerResources) -> Callable[[int], None]:
    """Return the function that requests workers from the autoscaler of the connected Ray cluster.

    A request holds until the next one. The autoscaler removes nodes without a worker after its own idle time;
    without an autoscaler, nothing happens.
    """
    from ray.autoscaler.sdk import request_resources

    options = resources.options
    bundle = options.get("resources") or {"GPU": options["num_gpus"]}
    return lambda workers: request_resources(bundles=[bundle] * workers)
