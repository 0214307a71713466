"""The page's working size is the largest that the machine is fast enough for."""

from collections.abc import Iterator

import pytest

from live2diff import Live2DiffPipeline
from live2diff.serving import working_size
from live2diff.serving.working_size import measure_size, set_size

SIZES = (16, 20, 24, 28)  # a sixteenth of the page's, for the tiny model


@pytest.fixture
def pipe(tiny_pipeline, monkeypatch) -> Iterator[Live2DiffPipeline]:
    """A model whose own size is the smallest."""
    monkeypatch.setattr(working_size, "SIZES", SIZES)
    set_size(tiny_pipeline, SIZES[0])
    yield tiny_pipeline
    set_size(tiny_pipeline, 32)


class Machine:
    """A clock that makes a frame take what `seconds` says for the size of the latest stream."""

    def __init__(self, pipe, monkeypatch, *seconds: float):
        self.seconds, self.now = dict(zip(SIZES, seconds, strict=True)), 0.0
        self.measured: list[int] = []
        open_stream = pipe.stream

        def stream(**settings):
            self.measured.append(settings["size"])
            return open_stream(**settings)

        monkeypatch.setattr(pipe, "stream", stream)

    def __call__(self) -> float:
        self.now += self.seconds[self.measured[-1]]
        return self.now


@pytest.mark.parametrize(
    ("seconds", "size", "measured"),
    [
        ((0.005, 0.01, 0.02, 0.03), 28, [16, 28]),
        ((0.02, 0.03, 0.05, 0.07), 24, [16, 28, 24]),
        ((0.04, 0.06, 0.1, 0.16), 20, [16, 20]),
        ((0.045, 0.07, 0.1, 0.16), 16, [16, 20]),
        ((0.051, 0.06, 0.06, 0.06), 16, [16]),  # no time is spent on what can hardly hold
        ((0.2, 0.4, 0.8, 1.2), 16, [16]),  # too slow, but there is none smaller
    ],
)
def test_the_largest_size_at_which_one_viewer_gets_16_frames_a_second(
    pipe, monkeypatch, seconds, size, measured
):
    machine = Machine(pipe, monkeypatch, *seconds)
    chosen, sentence = measure_size(pipe, clock=machine)
    assert (chosen, machine.measured) == (size, measured)
    fps = 1 / machine.seconds[size]
    assert f"size: {size}, at {fps:.1f} frames a second" in sentence
    assert pipe.config.size == 16, "measuring sets nothing"


def test_a_few_slow_frames_do_not_decide(pipe, monkeypatch):
    machine = Machine(pipe, monkeypatch, 0.005, 0.01, 0.02, 0.03)
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls % 8 == 0:  # every fourth frame
            machine.now += 5.0
        return machine()

    assert measure_size(pipe, clock=clock)[0] == 28


def test_a_model_of_another_size_keeps_it(tiny_pipeline):
    def clock() -> float:
        raise AssertionError("nothing is to be measured")

    size, sentence = measure_size(tiny_pipeline, clock=clock)  # the tiny model's 32 is none of the page's
    assert size == 32 and "32" in sentence


def test_a_size_that_is_set_is_that_of_every_stream(pipe):
    set_size(pipe, 64)
    assert pipe.working_size(1, 1) == (64, 64)
    with pytest.raises(ValueError, match="size 4096 is out of range"):
        set_size(pipe, 4096)
    assert pipe.config.size == 64
