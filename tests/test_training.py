"""The whole recipe, two steps a stage, to a model that loads and streams."""

import numpy as np
import pytest

import live2diff
from live2diff.training.data import sample_clip
from live2diff.training.recipe import train_nano
from live2diff.training.targets import TARGETS


def test_a_clip_is_a_function_of_its_seed_and_moves():
    (first, depth), (again, _) = (sample_clip(np.random.default_rng(3), 64, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 64, 64, 3) and first.dtype == np.uint8
    assert depth.shape == (4, 64, 64) and 0 <= depth.min() and depth.max() <= 1
    assert (first[0] != first[3]).mean() > 0.1


def test_every_style_has_a_target_and_a_phrase_in_its_own_words():
    from live2diff.training.text import SYNONYMS

    assert set(TARGETS) == set(SYNONYMS) == set(live2diff.STYLES)
    for name, phrases in SYNONYMS.items():
        assert any(phrase in live2diff.STYLES[name].prompt("") for phrase in phrases)


@pytest.mark.slow
def test_the_recipe_trains_saves_and_resumes(tmp_path):
    steps = list(train_nano(tmp_path / "work", tmp_path / "model", scale=1e-6))
    assert [(stage, step) for stage, step, _ in steps] == [
        (stage, step) for stage in ("vae", "depth", "image", "motion", "joint") for step in (0, 1)
    ]
    assert all(np.isfinite(list(losses.values())).all() for _, _, losses in steps)
    pipeline = live2diff.load(str(tmp_path / "model"), device="cpu")
    stream = pipeline.stream(style="oil", size=64)
    frames = [np.full((64, 64, 3), 100, np.uint8)] * 9
    assert len([out for frame in frames for out in stream.push(frame)] + stream.flush()) == 9
    # All checkpoints are there: nothing is left to do, and the result is the same.
    assert list(train_nano(tmp_path / "work", tmp_path / "again", scale=1e-6)) == []
    for file in (tmp_path / "model").glob("*/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "model")).read_bytes()
