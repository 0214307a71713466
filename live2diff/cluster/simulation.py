"""Simulate a fleet: the real waiting line, placement and autoscaler with simulated viewers and GPUs.

    python -m live2diff.cluster.simulation [--gpus 1 10 100 1000] [--seed 0]

Prints a table. Same seed, same table. One front is assumed to carry everybody.
"""

import argparse
import heapq
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

import numpy as np

from ..serving.admission import SILENCE_SECONDS, WaitingLine
from .autoscale import SCALE_SECONDS, Autoscaler
from .placement import WorkerState, place

POLL_SECONDS = 0.9 * SILENCE_SECONDS  # a page asks each second; less often is cheaper to simulate
# The share of each set of weights: the model's own, which most styles use, and six more.
FULL = {None: 0.4, "a": 0.2, "b": 0.15, "c": 0.1, "d": 0.07, "e": 0.05, "f": 0.03}


@dataclass(frozen=True)
class Scenario:
    """The assumptions. Durations that vary are drawn from exponential distributions with these means.

    Attributes:
        gpus: the most GPUs; without `autoscale` all of them run all the time.
        hours: the simulated time.
        cycle_hours: in which arrivals rise from a fifth of the peak and fall again; None for always the peak.
        slots: streams on one GPU.
        load: streams that the arrivals would occupy at the peak, as a share of all slots.
        visit_seconds: how long a viewer would like to stay.
        patience_seconds: after which a viewer leaves the line.
        slice_seconds: after which a viewer must leave while others wait.
        styles: the share of the viewers for each set of weights.
        mtbf_hours: between two failures of one worker.
        start_seconds: from the request of a node until its worker is ready.
        restart_seconds: from a failure until the worker is ready again.
        autoscale: whether workers follow the viewers.
        seed: same seed, same result.
    """

    gpus: int
    hours: float = 3.0
    cycle_hours: float | None = 3.0
    slots: int = 8
    load: float = 0.8
    visit_seconds: float = 300.0
    patience_seconds: float = 120.0
    slice_seconds: float = 120.0
    styles: dict[str | None, float] = field(default_factory=lambda: FULL)
    mtbf_hours: float = 100.0
    start_seconds: float = 240.0
    restart_seconds: float = 60.0
    autoscale: bool = False
    seed: int = 0


@dataclass
class Result:
    """The outcome of a scenario."""

    arrivals: int = 0
    waits: list[float] = field(default_factory=list)  # in seconds, of admitted viewers
    finished: int = 0  # stayed as long as they liked
    cut: int = 0  # had to leave for others
    left: int = 0  # left the line
    watching: int = 0  # at the end
    waiting: int = 0  # at the end
    moved_by_failure: int = 0
    moved_by_drain: int = 0
    stranded: int = 0  # lost their worker while no other had room
    restyled: int = 0  # took another style, because no worker could take theirs
    gpu_seconds: float = 0.0  # from the request of a node to its end
    stream_seconds: float = 0.0

    def row(self, scenario: Scenario) -> dict[str, str]:
        """Return a row of the table, by the titles of its columns."""
        p50, p95 = np.percentile(self.waits or [0.0], [50, 95])
        return {
            "GPUs": f"{scenario.gpus:,}",
            "run": "as needed" if scenario.autoscale else "all the time",
            "viewers": f"{self.arrivals:,}",
            "wait p50 / p95": f"{p50:.0f} / {p95:.0f} s",
            "left the line": f"{self.left / max(1, self.arrivals):.1%}",
            "cut short": f"{self.cut / max(1, self.arrivals):.1%}",
            "other style": f"{self.restyled / max(1, self.arrivals):.1%}",
            "moved: failure + drain": f"{self.moved_by_failure:,} + {self.moved_by_drain:,}",
            "of them waited": f"{self.stranded:,}",
            "GPU hours": f"{self.gpu_seconds / 3600:,.0f}",
            "slots in use": f"{self.stream_seconds / max(1.0, self.gpu_seconds * scenario.slots):.0%}",
        }


@dataclass
class Stream:
    """A viewer's stream; `worker` is None after a failure, until there is room."""

    worker: str | None
    weights: str | None
    since: float


class Fleet:
    """Simulated workers, as the engine of a `WaitingLine`."""

    def __init__(self, slots: int, clock: Callable[[], float]) -> None:
        self.admission: Callable[[str], AbstractContextManager] = nullcontext
        self.capacity = 0
        self.states: dict[str, WorkerState] = {}
        self.streams: dict[str, Stream] = {}
        self.stranded: dict[str, Stream] = {}  # waiting for a worker
        self.ended = 0
        self.stream_seconds = 0.0
        self._slots, self._clock = slots, clock

    def session_keys(self) -> Any:
        """Return the viewers with a stream; those whose worker failed keep their place."""
        return self.streams.keys()

    def make_room(self) -> None:
        """Do nothing: there are no silent streams."""

    def time_left(self, key: str) -> None:
        """Return None: no stream ends by itself."""

    def close(self, key: str) -> None:
        """End a viewer's stream."""
        stream = self.streams.pop(key, None)
        self.stranded.pop(key, None)
        if stream is not None:
            self._count(stream.worker, -1, stream.weights)
            self.ended += 1
            self.stream_seconds += self._clock() - stream.since

    def open(self, key: str, weights: str | None) -> bool:
        """Open a stream for an admitted viewer; return False if no worker can take these weights."""
        with self.admission(key):
            stream = Stream(None, weights, self._clock())
            self._place(stream)
            if stream.worker is not None:
                self.streams[key] = stream
            return stream.worker is not None

    def add(self, key: str) -> None:
        """Add a worker."""
        self.states[key] = WorkerState(key, self._slots, 0, None)
        self.capacity += self._slots

    def remove(self, key: str) -> tuple[int, int]:
        """Remove a worker; return how many streams were moved, and how many wait for room."""
        del self.states[key]
        self.capacity -= self._slots
        lost = {viewer: stream for viewer, stream in self.streams.items() if stream.worker == key}
        before = len(self.stranded)
        self.stranded |= lost
        self.place_stranded()
        stranded = len(self.stranded) - before
        return len(lost) - stranded, stranded

    def place_stranded(self) -> None:
        """Place the streams that lost their worker, where there is room: they come before the line."""
        for viewer, stream in [*self.stranded.items()]:
            self._place(stream)
            if stream.worker is not None:
                del self.stranded[viewer]

    def _place(self, stream: Stream) -> None:
        stream.worker = place([*self.states.values()], stream.weights)
        self._count(stream.worker, 1, stream.weights)

    def _count(self, key: str | None, streams: int, weights: str | None) -> None:
        if key is not None:
            state = self.states[key]
            self.states[key] = replace(state, streams=state.streams + streams, weights=weights)


class Simulation:
    """The events of one scenario, in order of time."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.result, self.now = scenario, Result(), 0.0
        self._random = Random(scenario.seed)
        self._events: list[tuple[float, int, Callable, tuple]] = []
        self._numbers = count()
        self.fleet = Fleet(scenario.slots, self.clock)
        fleet: Any = self.fleet  # it has what the line calls of an engine
        self.line = WaitingLine(fleet, scenario.slice_seconds, self.clock)
        self._autoscaler = Autoscaler(self._request, clock=self.clock)
        self._waiting: dict[str, tuple[float, str | None]] = {}  # since when, for which weights
        self._nodes, self._billed = 0, 0.0  # nodes paid for, and until when

    def clock(self) -> float:
        """Return the simulated time in seconds."""
        return self.now

    def run(self) -> Result:
        """Simulate the scenario."""
        scenario, result = self.scenario, self.result
        if scenario.autoscale:
            self._after(0.0, self._scale)
        else:
            self._nodes = scenario.gpus
            for _ in range(scenario.gpus):
                self._start()
        self._after(0.0, self._arrive)
        while self._events[0][0] <= scenario.hours * 3600:
            self.now, _, happen, arguments = heapq.heappop(self._events)
            happen(*arguments)
        self.now = scenario.hours * 3600
        self._bill()
        result.watching, result.waiting = len(self.fleet.streams), len(self._waiting)
        result.cut = self.fleet.ended - result.finished
        open_seconds = sum(self.now - stream.since for stream in self.fleet.streams.values())
        result.stream_seconds = self.fleet.stream_seconds + open_seconds
        return result

    def _after(self, seconds: float, happen: Callable, *arguments: Any) -> None:
        if seconds < math.inf:
            heapq.heappush(self._events, (self.now + seconds, next(self._numbers), happen, arguments))

    def _draw(self, mean: float) -> float:
        return self._random.expovariate(1 / mean) if mean < math.inf else mean

    # Viewers

    def _arrive(self) -> None:
        """Add a viewer with the probability of the time of day, which is 1 at the peak."""
        scenario = self.scenario
        peak = scenario.load * scenario.gpus * scenario.slots / scenario.visit_seconds
        self._after(self._draw(1 / peak), self._arrive)
        if scenario.cycle_hours is not None:
            phase = math.sin(math.pi * self.now / (3600 * scenario.cycle_hours)) ** 2
            if self._random.random() > 0.2 + 0.8 * phase:
                return
        viewer = f"viewer {self.result.arrivals}"
        [weights] = self._random.choices([*scenario.styles], [*scenario.styles.values()])
        self.result.arrivals += 1
        self._waiting[viewer] = self.now, weights
        self._after(self._draw(scenario.patience_seconds), self._give_up, viewer)
        self._ask(viewer)

    def _ask(self, viewer: str) -> None:
        """Ask for the position, as a page does while its viewer waits."""
        if viewer in self._waiting:
            if self.line.join(viewer).position == 0:
                self._enter(viewer)
            else:
                self._after(POLL_SECONDS, self._ask, viewer)

    def _enter(self, viewer: str) -> None:
        since, weights = self._waiting.pop(viewer)
        self.result.waits.append(self.now - since)
        if not self.fleet.open(viewer, weights):
            self.result.restyled += 1
            if not any(self.fleet.open(viewer, other) for other in self.scenario.styles):
                raise RuntimeError(f"{viewer} was admitted, but no worker has room.")
        self._after(self._draw(self.scenario.visit_seconds), self._depart, viewer)

    def _give_up(self, viewer: str) -> None:
        if self._waiting.pop(viewer, None) is not None:
            self.result.left += 1
            self.line.leave(viewer)

    def _depart(self, viewer: str) -> None:
        if viewer in self.fleet.streams:
            self.result.finished += 1
            self.line.leave(viewer)
            self._fill()

    def _fill(self) -> None:
        """Give free places to viewers who lost their worker, then to the first in line."""
        self.fleet.place_stranded()
        while self._waiting and self.line.join(first := next(iter(self._waiting))).position == 0:
            self._enter(first)

    # Workers

    def _start(self) -> None:
        key = f"w{next(self._numbers)}"
        self.fleet.add(key)
        self._after(self._draw(self.scenario.mtbf_hours * 3600), self._fail, key)
        self._fill()

    def _fail(self, key: str) -> None:
        if key in self.fleet.states:
            moved, stranded = self.fleet.remove(key)
            self.result.moved_by_failure += moved + stranded
            self.result.stranded += stranded
            self._after(self.scenario.restart_seconds, self._start)

    def _scale(self) -> None:
        self._after(SCALE_SECONDS, self._scale)
        waiting = len(self._waiting) + len(self.fleet.stranded)
        drained = self._autoscaler.update([*self.fleet.states.values()], waiting)
        if drained is not None:
            self._bill()
            self._nodes -= 1
            self.result.moved_by_drain += sum(self.fleet.remove(drained))

    def _request(self, workers: int) -> None:
        """Start nodes up to a number of workers, as Ray's autoscaler does."""
        self._bill()
        while self._nodes < min(workers, self.scenario.gpus):
            self._nodes += 1
            self._after(self.scenario.start_seconds, self._start)

    def _bill(self) -> None:
        self.result.gpu_seconds += self._nodes * (self.now - self._billed)
        self._billed = self.now


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description="Simulate a fleet of GPUs.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    scenarios = [
        # A few GPUs for longer: there are fewer viewers.
        Scenario(gpus, max(3.0, 3.0 * (300 // gpus)), autoscale=autoscale, seed=options.seed)
        for gpus in options.gpus
        for autoscale in (False, True)
    ]
    titles = Result().row(scenarios[0])
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for scenario in scenarios:
        print(f"| {' | '.join(Simulation(scenario).run().row(scenario).values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
