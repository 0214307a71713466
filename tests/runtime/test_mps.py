"""Requirements of Apple's GPUs, checked on a CPU: no float64, little memory for the warmup's attention."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from live2diff import Live2DiffPipeline
from live2diff.config import MAX_DENOISING_STEPS, WARMUP_FRAMES
from live2diff.loading import NANO, read_pipeline
from live2diff.runtime.mps import RowByRow, spare_memory

FRAMES = list(np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8))


@pytest.fixture
def sparing(tiny_pipeline) -> Iterator[Live2DiffPipeline]:
    before = tiny_pipeline.unet.attn_processors
    spare_memory(tiny_pipeline.unet)
    yield tiny_pipeline
    tiny_pipeline.unet.set_attn_processor(before)


def test_the_warmup_attends_row_by_row_and_gives_the_same_frames(tiny_pipeline, request, monkeypatch):
    rows: list[int] = []
    attend = functional.scaled_dot_product_attention

    def counted(query, *inputs, **options):
        rows.append(len(query))
        return attend(query, *inputs, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    expected = tiny_pipeline(FRAMES, steps=2, seed=1)
    assert WARMUP_FRAMES in rows
    rows.clear()
    out = request.getfixturevalue("sparing")(FRAMES, steps=2, seed=1)
    assert set(rows) == {1, 2} and max(rows) <= MAX_DENOISING_STEPS
    assert np.abs(np.stack(out).astype(int) - np.stack(expected)).max() <= 1


def test_only_a_model_read_for_mps_attends_row_by_row(monkeypatch):
    monkeypatch.setattr(Live2DiffPipeline, "to", lambda pipeline, *_: pipeline)
    for device in ("mps", "cpu"):
        pipeline = read_pipeline(NANO, device, torch.float32, lambda _: None)
        kinds = {type(processor) for processor in pipeline.unet.attn_processors.values()}
        assert (kinds == {RowByRow}) == (device == "mps")


class NoDoubles(TorchDispatchMode):
    """Fail if a number in 64 bits is computed, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return result


@pytest.mark.parametrize("cache_dtype", [None, torch.int8], ids=str)
def test_no_frame_needs_64_bits(tiny_pipeline, cache_dtype):
    stream = tiny_pipeline.stream(steps=2, cache_dtype=cache_dtype)
    with NoDoubles():
        out = [image for frame in FRAMES for image in stream.push(frame)]
        stream.update(prompt="a cat", style="neon")
        stream.restart()
        out += stream.push(FRAMES[0]) + stream.flush()
    assert len(out) == len(FRAMES) + 1
    with pytest.raises(AssertionError), NoDoubles():
        torch.ones(1).double()
