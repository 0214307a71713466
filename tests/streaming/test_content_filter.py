"""The content filter hides what the checker flags, here the real one at tiny width with chosen concepts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_models import SIDE, tiny_checker
from transformers import CLIPImageProcessor

from live2diff import load
from live2diff.streaming.content_filter import ContentFilter, hide

FRAME = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def content_filter() -> ContentFilter:
    return ContentFilter(tiny_checker())


def object_to(content_filter: ContentFilter, image: torch.Tensor) -> None:
    """Make the checker flag this image and very similar ones."""
    seen: list[torch.Tensor] = []
    checker = content_filter.checker
    handle = checker.visual_projection.register_forward_hook(lambda *call: seen.append(call[-1]))
    content_filter.flagged(image[None])
    handle.remove()
    with torch.no_grad():
        checker.concept_embeds[3] = seen[0][0]
        checker.concept_embeds_weights[3] = 0.999


def test_flagged_images_are_hidden_and_no_others(content_filter):
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(content_filter(images), images)
    object_to(content_filter, images[1])
    assert content_filter.flagged(images).tolist() == [False, True, False]
    out = content_filter(images)
    assert torch.equal(out[[0, 2]], images[[0, 2]])
    assert torch.equal(out[1], hide(images)[1])


def test_a_square_image_is_preprocessed_as_by_clips_own_processor(content_filter):
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    expected = processor(FRAME, return_tensors="pt").pixel_values
    image = torch.from_numpy(FRAME).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(content_filter.preprocess(image), expected, atol=1e-5, rtol=1e-5)


def test_a_hidden_image_has_no_detail_and_a_cross_that_is_symmetric():
    images = torch.rand(1, 3, 48, 64) * 2 - 1
    out = hide(images)
    cross = (out == 1).all(1)[0]
    assert 0.02 < cross.float().mean() < 0.2 and torch.equal(cross, cross.flip(1))
    blurred = out[0][:, ~cross]
    assert blurred.std() < 0.3 * images.std()
    assert out.shape == images.shape and out.dtype == images.dtype


def test_a_stream_returns_filtered_images(tiny_pipeline, content_filter, monkeypatch):
    monkeypatch.setattr(tiny_pipeline, "content_filter", content_filter)
    settings = {"style": "pencil", "seed": 1, "steps": 1}

    def outputs() -> list[np.ndarray]:
        stream = tiny_pipeline.stream(**settings)
        frames = [frame for _ in range(9) for frame in stream.push(FRAME)]
        stream.close()
        return frames

    as_they_are = outputs()
    with torch.no_grad():
        content_filter.checker.concept_embeds_weights.fill_(-2)  # everything
    crossed_out = outputs()
    corners = [frame[0, 0].tolist() for frame in crossed_out]
    assert corners == [[255] * 3] * 9
    assert any(frame[0, 0].tolist() != [255] * 3 for frame in as_they_are)


def test_it_is_loaded_with_the_model_on_request_and_mentioned(tmp_path: Path):
    tiny_checker().save_pretrained(tmp_path)
    pipe = load("nano", "cpu", eager=True, safety_checker=str(tmp_path))
    assert "content filter" in pipe.about
    assert not pipe.content_filter.flagged(torch.zeros(1, 3, 64, 64)).any()
    assert load("nano", "cpu", eager=True).content_filter is None
