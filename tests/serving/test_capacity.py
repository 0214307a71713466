"""The bytes of a stream's cache, and how many viewers there is room for."""

import numpy as np
import pytest
import torch
from helpers.waiting import PATIENCE

import live2diff
from live2diff.errors import LimitReached
from live2diff.model.kv_cache import dequantise, quantise
from live2diff.model.unet import StreamUNet
from live2diff.serving import engine as engine_module
from live2diff.serving.capacity import (
    CPU_VIEWERS,
    MOST_VIEWERS,
    Room,
    bytes_of_cache,
    measure_room,
    share,
)
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)
GB = 10**9


def bytes_of_a_viewer(dtype: torch.dtype) -> int:
    """For Stable Diffusion 1.5 at 512 x 512 with 2 steps; nothing of it is allocated."""
    with torch.device("meta"):
        return StreamUNet(cross_attention_dim=768).new_cache(2, 64, 64, dtype).nbytes


def test_a_viewer_of_the_full_model_takes_half_as_much_in_eight_bits():
    assert 3.0 * GB < bytes_of_a_viewer(torch.float16) < 3.1 * GB
    for dtype in EIGHT_BITS:
        assert bytes_of_a_viewer(dtype) < 1.6 * GB


def test_the_bytes_of_a_cache_are_known_before_it_is_allocated(tiny_pipeline):
    for dtype in (None, *EIGHT_BITS):
        stream = tiny_pipeline.stream(steps=2, size=48, cache_dtype=dtype)
        for frame in moving(8, 48):
            stream.push(frame)
        assert stream.nbytes == bytes_of_cache(tiny_pipeline, 2, (48, 48), dtype)


def moving(frames: int, side: int) -> list[np.ndarray]:
    """A pattern that drifts."""
    rows, columns = np.mgrid[:side, :side] / side
    waves = [
        np.sin(5 * columns + 0.2 * t + np.array([0, 2, 4])[:, None, None] + 7 * rows) for t in range(frames)
    ]
    return [np.moveaxis((127 * wave + 128).astype(np.uint8), 0, -1) for wave in waves]


def relative_error(pipeline, frames: list[np.ndarray], dtype: torch.dtype, **settings) -> float:
    """Return the error of the frames with a cache in 8 bits, relative to those with a full one."""
    full, small = (
        np.stack(pipeline(frames, **settings, cache_dtype=kept)).astype(np.float64) for kept in (None, dtype)
    )
    assert (full != small).any()
    return float(np.linalg.norm(full - small) / np.linalg.norm(full))


@pytest.mark.parametrize("steps", [1, 3])
def test_frames_with_a_cache_in_int8_are_within_a_hundredth(tiny_pipeline, steps):
    """Although the motion modules are random and strong. In fp8, one or two hundredths."""
    frames = moving(22, 32)
    assert relative_error(tiny_pipeline, frames, torch.int8, steps=steps, style="pencil") < 0.01
    assert relative_error(tiny_pipeline, frames, torch.float8_e4m3fn, steps=steps, style="pencil") < 0.02


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_the_shipped_models_frames_with_a_cache_in_eight_bits_are_within_a_hundredth(dtype):
    pipeline = live2diff.load("nano", "cpu", eager=True)
    assert relative_error(pipeline, moving(20, 64), dtype, style="watercolour", size=64) < 0.01


@pytest.mark.parametrize(("dtype", "error"), [(torch.int8, 0.01), (torch.float8_e4m3fn, 0.04)], ids=str)
def test_eight_bits_keep_entries_of_every_size(dtype, error):
    entries = torch.randn(2, 3, 5, 64) * torch.logspace(-6, 6, 8).repeat_interleave(8)
    stored, scale = quantise(entries, dtype)
    assert stored.dtype == dtype and scale.shape == (2, 3, 5, 8)
    back = dequantise(stored, scale, torch.float32)
    for head, whole in zip(back.split(8, dim=-1), entries.split(8, dim=-1), strict=True):
        assert (head - whole).norm() < error * whole.norm()
    assert not dequantise(*quantise(0 * entries, dtype), torch.float32).any()
    assert dequantise(*quantise(65504 * entries.sign(), dtype), torch.float32).isfinite().all()


def test_depth_every_third_frame_is_estimated_every_third_frame(tiny_pipeline):
    estimates = []
    hook = tiny_pipeline.depth_estimator.register_forward_hook(lambda *_: estimates.append(stream.frames_in))
    stream = tiny_pipeline.stream(steps=2, depth_every=3)
    out = [picture for frame in moving(20, 32) for picture in stream.push(frame)] + stream.flush()
    hook.remove()
    assert len(out) == 20
    assert estimates == [*range(8), 9, 12, 15, 18]
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="depth_every"):
            tiny_pipeline.stream(depth_every=bad)
    with pytest.raises(ValueError, match="cache_dtype"):
        tiny_pipeline.stream(cache_dtype=torch.float16)


def test_room_is_what_is_free_divided_by_what_a_viewer_takes():
    assert share(24 * GB, 3 * GB, 2 * GB, 2).viewers == 4  # 0.9 x 24 less 5, by 3.5
    assert "4 viewers" in share(24 * GB, 3 * GB, 2 * GB, 2).reason
    assert share(141 * GB, 3 * GB, 2 * GB, 2).viewers == MOST_VIEWERS
    assert share(1 * GB, 3 * GB, 2 * GB, 2).viewers == 1
    for free in (1, 24, 141):
        room = share(free * GB, 3 * GB, 2 * GB, 2)
        assert room.cache_bytes >= room.viewers * 3 * GB, "there is room for the default streams"
    with pytest.raises(ValueError, match="capacity is 0"):
        Room(0, "")


def test_on_a_cpu_there_is_room_for_four(tiny_pipeline):
    engine = Engine(tiny_pipeline, capacity=None)
    assert engine.capacity == measure_room(tiny_pipeline).viewers == CPU_VIEWERS
    assert "4 viewers" in str(engine.room)
    engine.shutdown()


def test_streams_are_admitted_by_the_bytes_of_their_caches(tiny_pipeline, monkeypatch):
    """There is room for three of two steps: one of four steps counts as two, until it has left."""
    two_steps = bytes_of_cache(tiny_pipeline, 2, (32, 32))
    room = Room(3, "Room for 3.", cache_bytes=3 * two_steps)
    monkeypatch.setattr(engine_module, "measure_room", lambda *_: room)
    engine = Engine(tiny_pipeline, capacity=None)
    ordinary, hungry = StreamSettings(steps=2), StreamSettings(steps=4)
    engine.open("ann", hungry).result(PATIENCE)
    engine.open("bob", ordinary).result(PATIENCE)
    with pytest.raises(LimitReached, match=r"2 denoising steps need .* GB .*Choose fewer steps"):
        engine.open("cid", ordinary).result(PATIENCE)
    assert engine.session_keys() == {"ann", "bob"}, "a refused stream takes no place"
    engine.open("ann", ordinary).result(PATIENCE)
    engine.open("cid", ordinary).result(PATIENCE)
    with pytest.raises(LimitReached, match="4 denoising steps need"):
        engine.update("cid", hungry).result(PATIENCE)
    engine.close("bob").result(PATIENCE)
    engine.update("cid", hungry).result(PATIENCE)
    with pytest.raises(LimitReached, match="2 denoising steps need"):
        engine.open("bob", ordinary).result(PATIENCE)
    with engine.clip("clip", hungry) as stream:  # has room of its own
        assert stream.ignored_words == ""
    assert engine.capacity == 3
    engine.shutdown()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_room_is_measured(tiny_pipeline):
    pipeline = tiny_pipeline.to("cuda")
    try:
        room = measure_room(pipeline)
        assert room.viewers == MOST_VIEWERS and "of the GPU are free" in room.reason
    finally:
        tiny_pipeline.to("cpu")
