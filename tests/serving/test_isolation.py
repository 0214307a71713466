"""Several viewers of one engine come, change settings and go in any order: the frames of each are
bit-identical to those of a stream alone with the same calls."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers.gpu_visits import Clock
from helpers.waiting import PATIENCE
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from live2diff import Live2DiffPipeline
from live2diff.errors import EngineBusy, StreamClosed
from live2diff.serving.engine import QUIET_SECONDS, Engine
from live2diff.streaming.settings import StreamSettings

CAPACITY = 3
NAMES = ("ann", "bob", "cid", "dan")  # one more than there are places
FRAMES = [
    np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    for number, shape in enumerate([(24, 32, 3)] * 4 + [(40, 24, 3)])
]
NOT_A_FRAME = np.zeros((24, 32), np.uint8)

names = some.sampled_from(NAMES)
inside = some.runner().flatmap(lambda machine: some.sampled_from(sorted(machine.lives)))
styles = some.sampled_from(["pencil", "neon", "comic", ""])
prompts = some.sampled_from(["", "a cat", "a house by the sea"])
openings = some.fixed_dictionaries(
    {
        "style": styles,
        "prompt": prompts,
        "seed": some.integers(0, 3),
        "steps": some.integers(1, 3),
        "size": some.sampled_from([16, 24, (16, 32)]),
    }
)
changes = some.fixed_dictionaries({"style": styles, "prompt": prompts, "blend": some.sampled_from([0, 3])})


@dataclass
class Life:
    """One stream of a viewer: its calls, its results, and the future of the last frame."""

    opening: dict[str, Any]
    calls: list[tuple[str, tuple, dict[str, Any]]] = field(default_factory=list)
    given: list[np.ndarray] = field(default_factory=list)
    owed: Future | None = None
    settings: StreamSettings = field(init=False)  # after all updates

    def __post_init__(self) -> None:
        self.settings = StreamSettings(**self.opening)

    def settle(self) -> None:
        if self.owed is not None:
            owed, self.owed = self.owed, None
            try:
                self.given += owed.result(PATIENCE).frames
            except StreamClosed:  # closed while the frame waited
                self.calls.pop()

    def replayed(self, pipe: Live2DiffPipeline) -> Iterator[np.ndarray]:
        """The same calls on a stream that is alone."""
        stream = pipe.stream(**self.opening)
        for name, arguments, keywords in self.calls:
            yield from getattr(stream, name)(*arguments, **keywords) or ()
        stream.close()


class Viewers(RuleBasedStateMachine):
    """Every rule leaves the frames of the other viewers on their way: the engine has several at once."""

    def __init__(self, pipe: Live2DiffPipeline, compared: Counter):
        super().__init__()
        self.pipe, self.compared = pipe, compared
        self.clock = Clock()
        self.engine = Engine(pipe, capacity=CAPACITY, clock=self.clock)
        self.lives: dict[str, Life] = {}
        self.past: list[Life] = []

    def end(self, name: str) -> None:
        if name in self.lives:
            self.past.append(self.lives.pop(name))

    @rule(name=names, opening=openings)
    def open(self, name: str, opening: dict[str, Any]) -> None:
        if len(self.lives.keys() - {name}) == CAPACITY:
            with pytest.raises(EngineBusy):
                self.engine.open(name, StreamSettings(**opening))
            return
        self.end(name)
        self.engine.open(name, StreamSettings(**opening)).result(PATIENCE)
        self.lives[name] = Life(opening)

    @precondition(lambda self: self.lives)
    @rule(left_out=some.sets(names, max_size=1), frame=some.sampled_from(FRAMES), times=some.integers(4, 12))
    def push(self, left_out: set[str], frame: np.ndarray, times: int) -> None:
        """To several at once, a few times."""
        for turn in range(times):
            for name in sorted(self.lives.keys() - left_out):
                life = self.lives[name]
                life.settle()
                image = np.roll(frame, turn, axis=1)
                life.calls.append(("push", (image,), {}))
                life.owed = self.engine.push(name, image)

    @precondition(lambda self: self.lives)
    @rule(name=inside)
    def push_what_is_no_frame(self, name: str) -> None:
        self.lives[name].settle()
        with pytest.raises(ValueError, match="frame"):
            self.engine.push(name, NOT_A_FRAME).result(PATIENCE)

    @precondition(lambda self: self.lives)
    @rule(name=inside, change=changes)
    def update(self, name: str, change: dict[str, Any]) -> None:
        self.lives[name].settle()
        self.lives[name].calls.append(("update", (), change))
        life = self.lives[name]
        live = {name: value for name, value in change.items() if name != "blend"}
        life.settings = life.settings.updated(**live)
        self.engine.update(name, life.settings, blend=change["blend"]).result(PATIENCE)

    @precondition(lambda self: self.lives)
    @rule(name=inside)
    def restart(self, name: str) -> None:
        self.lives[name].settle()
        self.lives[name].calls.append(("restart", (), {}))
        self.engine.restart(name).result(PATIENCE)

    @precondition(lambda self: self.lives)
    @rule(name=inside)
    def close(self, name: str) -> None:
        """Maybe in the middle of a frame."""
        self.engine.close(name)
        self.end(name)

    @precondition(lambda self: self.lives)
    @rule(name=inside)
    def expire(self, name: str) -> None:
        for life in self.lives.values():
            life.settle()
        self.clock.now += QUIET_SECONDS + 1
        for other in self.lives.keys() - {name}:
            self.lives[other].calls.append(("restart", (), {}))
            self.engine.restart(other).result(PATIENCE)  # which says that it is there
        self.engine.make_room()
        self.end(name)
        with pytest.raises(StreamClosed):
            self.engine.push(name, FRAMES[0])

    def teardown(self) -> None:
        for name in list(self.lives):
            self.end(name)
        for life in self.past:
            life.settle()
        self.engine.shutdown()
        for life in self.past:
            alone = list(life.replayed(self.pipe))
            assert len(alone) == len(life.given)
            for mine, other in zip(life.given, alone, strict=True):
                np.testing.assert_array_equal(mine, other)
            self.compared["frames"] += len(alone)
        self.compared["streams"] += len(self.past)
        self.compared["sequences"] += 1


def in_any_order(pipe: Live2DiffPipeline, examples: int, rules: int, number: int) -> None:
    compared = Counter()
    run_state_machine_as_test(
        seed(number)(lambda: Viewers(pipe, compared)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=rules,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # making a failing run shorter takes many times as long as finding it
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert compared["frames"], "nobody had one"
    print(number, dict(compared))


def test_viewers_in_any_order_get_what_each_would_get_alone(tiny_pipeline):
    in_any_order(tiny_pipeline, examples=6, rules=15, number=0)


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 5))
def test_viewers_in_any_order_get_what_each_would_get_alone_many_times_over(tiny_pipeline, number):
    in_any_order(tiny_pipeline, examples=50, rules=25, number=number)
