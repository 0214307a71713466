"""Injected faults (NaN, infinity, a full device) cost one viewer a frame or a stream."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.full_memory import Full
from helpers.gpu_visits import visiting
from helpers.paths import EXAMPLES
from helpers.waiting import PATIENCE
from torch import nn

from live2diff import Live2DiffPipeline
from live2diff.errors import ClipStopped, NonFiniteError, StreamClosed, StreamOutOfMemory
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut, probe
from live2diff.zerogpu.engine import ZeroGpuEngine

ROOM = EXAMPLES / "room.mp4"
SIZE = 16  # pixels: quick
CURSED = np.full((48, 64, 3), 255, np.uint8)  # the one image that is all white


def frames(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 200, (count, 48, 64, 3), dtype=np.uint8))


@contextmanager
def spoilt(module: nn.Module, number: float, when: Callable[[tuple], torch.Tensor | bool]) -> Iterator[None]:
    """What `module` gives is `number` wherever `when` says so, of its arguments: once, or row by row."""

    def spoil(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        rows = torch.as_tensor(when(arguments)).reshape(-1, *[1] * (output.ndim - 1))
        return torch.where(rows, number, output)

    hook = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


def is_white(arguments: tuple) -> torch.Tensor:
    return (arguments[0].flatten(1) >= 0.999).all(1)


class Once:
    """True at one call, or from it on; false before."""

    def __init__(self, at: int, for_good: bool = False):
        self.calls, self.at, self.for_good = 0, at, for_good

    def __call__(self, _: object) -> bool:
        self.calls += 1
        return self.calls > self.at if self.for_good else self.calls == self.at + 1


def out_of(stream, clip: list[np.ndarray]) -> list[np.ndarray]:
    return [out for frame in clip for out in stream.push(frame)] + stream.flush()


def parts_of(pipe: Live2DiffPipeline) -> dict[str, nn.Module]:
    return {
        "camera": pipe.vae.encoder,
        "depth": pipe.depth_estimator.head,
        "unet": pipe.unet,
        "motion": pipe.unet.down_blocks[0].motion_modules[0].temporal_transformer.proj_in,
        "image": pipe.vae.decoder,
    }


@pytest.mark.parametrize(
    ("number", "steps", "parts"),
    [
        (float("nan"), 2, ("camera", "depth", "unet", "motion", "image")),
        (float("inf"), 1, ("camera", "unet")),
    ],
)
def test_a_non_finite_value_loses_no_frame_and_gives_no_black_image(tiny_pipeline, number, steps, parts):
    clip = frames(1, 11)
    expected = out_of(tiny_pipeline.stream(size=SIZE, steps=steps, seed=4), clip)
    for part in parts:
        module = parts_of(tiny_pipeline)[part]
        at = 10 if part in ("camera", "depth") else 2
        with spoilt(module, number, once := Once(at)):
            out = out_of(tiny_pipeline.stream(size=SIZE, steps=steps, seed=4), clip)
        assert once.calls > at and len(out) == len(expected), part
        for mine, good in zip(out, expected, strict=True):
            # An image of this scene in these colours; a black or a grey one is far away.
            assert mine.std() > good.std() / 2, part
            assert abs(mine.mean() - good.mean()) < 25, part


@pytest.mark.parametrize(
    ("part", "at", "words"),
    [
        ("camera", 10, "VAE encoder"),
        ("camera", 0, "VAE encoder"),
        ("depth", 10, "the depth"),
        ("unet", 5, "the UNet"),
        ("image", 0, "VAE decoder"),
    ],
)
def test_lasting_non_finite_values_end_in_an_error_that_names_the_part(tiny_pipeline, part, at, words):
    stream, clip = tiny_pipeline.stream(size=SIZE, steps=2), frames(2, 14)
    with spoilt(parts_of(tiny_pipeline)[part], float("nan"), Once(at, for_good=True)):
        with pytest.raises(NonFiniteError, match="NaN or infinity") as error:
            out_of(stream, clip)
    assert words in str(error.value)
    with pytest.raises(RuntimeError, match="closed"):
        stream.push(clip[0])


def test_a_broken_frame_of_one_viewer_is_not_seen_by_another_in_the_same_batch(tiny_pipeline):
    engine = Engine(tiny_pipeline, capacity=2, together=True)
    clip, other = frames(3, 12), frames(4, 12)
    for key in ("ann", "bob"):
        engine.open(key, StreamSettings(size=SIZE, steps=2, seed=1)).result(PATIENCE)
    alone = {
        "ann": tiny_pipeline.stream(size=SIZE, steps=2, seed=1),
        "bob": tiny_pipeline.stream(size=SIZE, steps=2, seed=1),
    }
    expected = {key: out_of(stream, clip if key == "ann" else other) for key, stream in alone.items()}
    given: dict[str, list[np.ndarray]] = {"ann": [], "bob": []}
    with spoilt(tiny_pipeline.vae.encoder, float("nan"), is_white):
        for turn, (frame, of_bob) in enumerate(zip(clip, other, strict=True)):
            answers = {
                "ann": engine.push("ann", CURSED if turn == 9 else frame),
                "bob": engine.push("bob", of_bob),
            }
            for key, answer in answers.items():
                given[key] += answer.result(PATIENCE).frames
    engine.shutdown()
    for mine, good in zip(given["bob"], expected["bob"], strict=False):
        assert np.abs(mine.astype(int) - good).max() <= 1  # a grey level, as always in a batch
    for mine, good in zip(given["ann"], expected["ann"], strict=False):
        assert mine.std() > good.std() / 2
    assert len(given["ann"]) == len(given["bob"]) == 11


@pytest.mark.parametrize(("moment", "together"), [("open", False), ("warmup", True), ("stream", True)])
def test_out_of_memory_tells_one_viewer_what_to_lower_and_nobody_else_notices(
    tiny_pipeline, moment, together
):
    pipe, engine = tiny_pipeline, Engine(tiny_pipeline, capacity=3, together=together)
    clip, mine = frames(5, 12), frames(6, 12)
    expected = out_of(pipe.stream(size=SIZE, steps=2, seed=1), clip)
    given: list[np.ndarray] = []
    engine.open("bob", StreamSettings(size=SIZE, steps=2, seed=1)).result(PATIENCE)

    def turn(number: int) -> None:
        given.extend(engine.push("bob", clip[number]).result(PATIENCE).frames)

    pushed = {"open": 0, "warmup": 7, "stream": 9}[moment]
    if moment != "open":
        engine.open("ann", StreamSettings(size=SIZE, steps=2)).result(PATIENCE)
    for number in range(pushed):
        engine.push("ann", mine[number]).result(PATIENCE)
        turn(number)
    stream = None if moment == "open" else weakref.ref(engine.registry.get("ann").stream)
    module = pipe.text_encoder if moment == "open" else pipe.unet
    with (
        Full(module, lambda _: True) as full,
        pytest.raises(StreamOutOfMemory, match=r"fewer denoising steps.*--streams"),
    ):
        if moment == "open":
            engine.open("ann", StreamSettings(size=SIZE, steps=2)).result(PATIENCE)
        engine.push("ann", mine[pushed]).result(PATIENCE)
    assert full.calls and engine.session_keys() == {"bob"} and engine.capacity == 3
    assert stream is None or stream() is None, "the stream's memory is still held"
    engine.open("ann", StreamSettings(size=SIZE, steps=1)).result(PATIENCE)  # a new one can start
    assert engine.push("ann", mine[0]).result(PATIENCE).frames_in == 1
    for number in range(pushed, len(clip)):
        turn(number)
    engine.shutdown()
    for out, good in zip(given, expected, strict=False):
        assert np.abs(out.astype(int) - good).max() <= 1
    assert len(given) == 11


@pytest.mark.parametrize("moment", ["open", "warmup", "clip"])
def test_out_of_memory_on_a_lent_gpu_is_reported_as_well_and_the_viewer_can_begin_again(
    tiny_pipeline, moment
):
    engine, frame = ZeroGpuEngine(tiny_pipeline, capacity=1), frames(9, 1)[0]
    module = tiny_pipeline.text_encoder if moment == "open" else tiny_pipeline.unet
    with (
        Full(module, lambda _: True),
        pytest.raises(StreamOutOfMemory, match=r"fewer denoising steps.*--streams"),
    ):
        if moment == "clip":
            with engine.clip("ann", StreamSettings(size=SIZE, steps=1)) as stream:
                stream.push(frame)
                stream.flush()
        engine.open("ann", StreamSettings(size=SIZE, steps=1))
        with visiting(engine, "ann") as over:
            try:
                for _ in range(8):
                    engine.push("ann", frame).result(PATIENCE)
            finally:
                assert over.wait(PATIENCE), "the GPU was not given back"
                with pytest.raises(StreamClosed):
                    engine.push("ann", frame)
    engine.open("ann", StreamSettings(size=SIZE, steps=1))
    with visiting(engine, "ann"):
        assert engine.push("ann", frame).result(PATIENCE).frames_in == 1
    engine.shutdown()


def test_out_of_memory_for_a_batch_its_streams_are_processed_one_by_one(tiny_pipeline):
    engine = Engine(tiny_pipeline, capacity=2, together=True)
    clips = {"ann": frames(7, 12), "bob": frames(8, 12)}
    given: dict[str, list[np.ndarray]] = {"ann": [], "bob": []}
    for key in clips:
        engine.open(key, StreamSettings(size=SIZE, steps=1, seed=1)).result(PATIENCE)
    with Full(tiny_pipeline.unet, lambda arguments: 1 < len(arguments[0]) < 8) as full:  # not the warmup
        for pair in zip(*clips.values(), strict=True):
            with held(engine):  # both wait: they go together
                answers = [engine.push(key, frame) for key, frame in zip(clips, pair, strict=True)]
            for key, answer in zip(clips, answers, strict=True):
                given[key] += answer.result(PATIENCE).frames
    assert full.calls == 4 and engine.capacity == 2
    engine.shutdown()
    for key, clip in clips.items():
        for out, good in zip(
            given[key], out_of(tiny_pipeline.stream(size=SIZE, steps=1, seed=1), clip), strict=True
        ):
            assert np.abs(out.astype(int) - good).max() <= 1


def test_a_clip_out_of_memory_says_so_and_keeps_what_is_done(tiny_pipeline, tmp_path):
    engine = Engine(tiny_pipeline, capacity=2)
    jobs = ClipQueue(engine, tmp_path / "results")
    result = jobs.new_result()
    settings = StreamSettings(style="pencil", steps=1)
    full = Full(tiny_pipeline.unet, lambda _: result.frames >= 8)  # the warmup is through
    with full, pytest.raises(ClipStopped, match="not enough memory"):
        for _ in jobs.run("clip/ann", ROOM, result, Cut(0, 1), settings):
            pass
    assert full.calls == 1 and result.frames == 8 and probe(result.path).frame_count == 8
    assert engine.stats()["clips"] == 0 and engine.capacity == 2  # clips take no place
    engine.shutdown()


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """The device waits until the block ends."""
    go_on = threading.Event()
    engine.submit(engine.registry.get("ann"), go_on.wait, PATIENCE)
    try:
        yield
    finally:
        go_on.set()
