"""Changes of a running stream: two prompts mixed, other denoising steps; equal to slow computations."""

import numpy as np
import pytest
import torch
from helpers.streams import assert_same, frames

from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.settings import StreamSettings

CLIP = frames(5, 20)
PENCIL = {"style": "pencil", "prompt": "a cat", "size": 32, "scene_cut": None}


@pytest.fixture
def pipe(tiny_pipeline):
    """A pipeline whose noise does not depend on how many frames came before."""
    tiny_pipeline.register_to_config(fixed_noise=True)
    yield tiny_pipeline
    tiny_pipeline.register_to_config(fixed_noise=False)


def outputs(stream, clip):
    return [image for frame in clip for image in stream.push(frame)]


@pytest.mark.parametrize("mix_style", ["neon", None])
def test_mixed_prompts_are_embeddings_interpolated(pipe, monkeypatch, mix_style):
    mixed = pipe.stream(**PENCIL, mix_style=mix_style, mix_prompt="a dog", mix=0.25)
    own, second = pipe.encode_prompt("pencil", "a cat"), pipe.encode_prompt(mix_style or "pencil", "a dog")
    by_hand = 0.75 * own.double() + 0.25 * second.double()
    torch.testing.assert_close(mixed.state.prompt.target.double(), by_hand, atol=1e-6, rtol=0)
    image = outputs(mixed, CLIP[:12])
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "encode_prompt", lambda *_: by_hand.float())
        slow = outputs(pipe.stream(**PENCIL), CLIP[:12])
    assert np.abs(np.stack(image).astype(int) - np.stack(slow)).max() <= 1
    assert np.abs(np.stack(image).astype(int) - np.stack(outputs(pipe.stream(**PENCIL), CLIP[:12]))).max() > 1


def test_a_mix_of_0_ignores_the_second_prompt_and_a_mix_of_1_the_first(pipe):
    plain = outputs(pipe.stream(**PENCIL), CLIP[:12])
    unused = {"mix_style": "no such style", "mix_prompt": "a dog"}
    assert_same(outputs(pipe.stream(**PENCIL, **unused), CLIP[:12]), plain)
    whole = pipe.stream(**PENCIL, mix_style="neon", mix_prompt="a dog", mix=1)
    second = pipe.stream(**PENCIL | {"style": "neon", "prompt": "a dog"})
    assert_same(outputs(whole, CLIP[:12]), outputs(second, CLIP[:12]))


def test_a_change_of_the_mix_is_blended_over_frames(pipe):
    stream = pipe.stream(**PENCIL, steps=1)
    outputs(stream, CLIP[:10])
    stream.update(mix_style="neon", mix_prompt="a dog", mix=0.5, blend=4)
    target = torch.lerp(pipe.encode_prompt("pencil", "a cat"), pipe.encode_prompt("neon", "a dog"), 0.5)
    for index, frame in enumerate(CLIP[10:16]):
        stream.push(frame)
        assert torch.allclose(stream.state.prompt.embeds, target, atol=1e-6) == (index >= 3)


def test_a_bad_mix_is_refused_by_name_and_changes_nothing(pipe):
    stream = pipe.stream(**PENCIL)
    for changes, words in (
        ({"mix": 1.5}, "mix is 1.5; it must be from 0 to 1"),
        ({"mix": float("nan")}, "mix is nan; it must be from 0 to 1"),
        ({"mix": 0.5, "mix_style": "cubist"}, "no style 'cubist'"),
        ({"mix": 0.5, "mix_prompt": "x" * 5000}, "5000 characters"),
    ):
        with pytest.raises(ValueError, match=words):
            stream.update(**changes)
    assert stream.settings == StreamSettings(**PENCIL)
    stream.update(mix=0.5, mix_prompt="cat " * 100)
    assert stream.ignored_words.startswith("cat cat")


@pytest.mark.parametrize(
    ("before", "steps", "strength"), [(1, 3, 0.9), (4, 1, None), (4, 2, 0.3), (2, 2, 0.9)]
)
def test_other_steps_give_what_a_stream_opened_with_them_gives_after_a_restart(pipe, before, steps, strength):
    changed = pipe.stream(**PENCIL, steps=before)
    opened = pipe.stream(**PENCIL, steps=steps, strength=strength)
    out, _ = outputs(changed, CLIP[:14]), outputs(opened, CLIP[:14])
    if before == steps:
        out += changed.flush()
    changed.update(steps=steps, strength=strength)
    opened.flush()  # those in flight have a past of their own
    opened.restart()
    out += outputs(changed, CLIP[14:])
    assert_same(out[14:], outputs(opened, CLIP[14:]))
    out += changed.flush()
    assert len(out) == changed.frames_out == changed.frames_in == len(CLIP), "a frame was lost"


def test_frames_in_flight_are_finished_with_their_own_steps(pipe):
    changed, flushed = (pipe.stream(**PENCIL, steps=4) for _ in range(2))
    outputs(changed, CLIP[:12])
    outputs(flushed, CLIP[:12])
    changed.update(steps=1)
    assert_same(changed.push(CLIP[12])[:3], flushed.flush())
    assert len(changed.push(CLIP[13])) == 1


def test_steps_may_change_before_the_warmup_and_the_cache_is_freed(pipe):
    changed, opened = pipe.stream(**PENCIL, steps=1), pipe.stream(**PENCIL, steps=3)
    outputs(changed, CLIP[:5])
    changed.update(steps=3)
    assert_same(outputs(changed, CLIP[5:]), outputs(opened, CLIP))
    assert changed.nbytes == opened.nbytes
    changed.update(steps=2)
    assert changed.nbytes == pytest.approx(opened.nbytes * 2 / 3)


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def reserved(pipe) -> CachePools:
    """Pools with two reserved rows."""
    pools, size = CachePools(), pipe.working_size(48, 64, 32)
    pools.reserve(pipe.unet, 2, {size: pipe.latent_shape(size)[1:]})
    return pools


def test_fewer_steps_need_no_memory_beyond_the_present_rows(pipe, reserved, monkeypatch):
    monkeypatch.setattr(type(pipe.unet), "new_cache", out_of_memory)
    stream = pipe.stream(**PENCIL, steps=2, pools=reserved)
    outputs(stream, CLIP[:12])
    for steps in (1, 2):
        stream.update(steps=steps)
        outputs(stream, CLIP[12:16])
        assert stream.schedule.steps == stream.pool.steps == steps
    stream.close()


def test_too_little_memory_for_more_steps_leaves_the_stream_as_after_a_restart(pipe, reserved, monkeypatch):
    changed, restarted = pipe.stream(**PENCIL, steps=2, pools=reserved), pipe.stream(**PENCIL, steps=2)
    out, expected = outputs(changed, CLIP[:12]), outputs(restarted, CLIP[:12])
    monkeypatch.setattr(type(pipe.unet), "new_cache", out_of_memory)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            changed.update(steps=3, style="neon", prompt="a dog")
        assert changed.settings == restarted.settings and changed.schedule.steps == 2
    expected += restarted.flush()
    restarted.restart()
    assert_same(out + outputs(changed, CLIP[12:]), expected + outputs(restarted, CLIP[12:]))
    changed.close()


def test_a_stream_that_cannot_get_its_former_rows_back_is_closed(pipe, monkeypatch):
    stream = pipe.stream(**PENCIL, steps=2)
    outputs(stream, CLIP[:12])
    pool = stream.pool
    monkeypatch.setattr(type(pipe.unet), "new_cache", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        stream.update(steps=1)
    assert len(pool) == 0
    with pytest.raises(RuntimeError, match="closed"):
        stream.push(CLIP[12])


def test_an_error_in_the_last_steps_of_frames_in_flight_leaves_the_stream_as_it_was(pipe, monkeypatch):
    pools = CachePools()
    stream, other = (pipe.stream(**PENCIL, steps=3, pools=pools) for _ in range(2))
    expected = outputs(other, CLIP)
    out = outputs(stream, CLIP[:12])
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "predict", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            stream.update(steps=2)
    assert stream.settings.steps == stream.schedule.steps == 3 and len(stream.pool) == 2
    assert_same(out + outputs(stream, CLIP[12:]), expected)
    stream.update(steps=2)
    assert stream.schedule.steps == 2 and len(other.pool) == 1
    for each in (stream, other):
        each.close()


def test_a_change_of_strength_keeps_the_cache_only_on_request(pipe):
    kept, filled = (pipe.stream(**PENCIL, steps=1, strength=0.3) for _ in range(2))
    for stream in (kept, filled):
        outputs(stream, CLIP[:12])
    kept.update(strength=0.9, keep_cache=True)
    filled.update(strength=0.9)
    assert not kept.state.restart_due and filled.state.restart_due
    assert not np.array_equal(kept.push(CLIP[12]), filled.push(CLIP[12]))
    assert torch.equal(kept.schedule.timesteps, filled.schedule.timesteps)


def test_an_update_of_a_session_changes_only_what_it_names():
    opened = StreamSettings(**PENCIL, steps=3, strength=0.4, seed=2)
    message = {"style": "neon", "prompt": "a dog", "seed": 9, "strength": None}
    expected = opened.updated(style="neon", prompt="a dog", strength=None)
    assert opened.updated_live(StreamSettings.from_message(message)) == expected
