"""The figures of memory, seams and style change in the right direction on synthetic streams."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from live2diff.evaluation.figures import (
    find_edges,
    find_motion,
    find_moving,
    find_still,
    lag,
    moving_structure,
    perceptual_distance,
    seams,
    still_flicker,
)
from live2diff.streaming.images import resize

SIDE, FRAMES, SQUARE, STEP = 96, 14, 32, 4


def texture(side: int, seed: int) -> np.ndarray:
    """Soft coloured blobs of some six pixels."""
    random = np.random.default_rng(seed)
    return resize(random.integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8), (side, side))


def noisy(image: np.ndarray, seed: int, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    """A square that moves to the right by STEP over a still ground."""
    ground, square = texture(SIDE, 0), texture(SQUARE, 1)
    frames = [ground.copy() for _ in range(FRAMES)]
    for index, frame in enumerate(frames):
        frame[30 : 30 + SQUARE, 4 + STEP * index : 4 + STEP * index + SQUARE] = square
    return frames


@pytest.fixture(scope="module")
def moving(clip) -> list[np.ndarray]:
    return find_moving(clip)


@pytest.fixture(scope="module")
def still(clip) -> list[np.ndarray]:
    return [find_still(before, after, find_motion(before, after)) for before, after in pairwise(clip)]


def edges(images: list[np.ndarray]) -> list[np.ndarray]:
    return [find_edges(image) for image in images]


def delayed(images: list[np.ndarray], frames: int) -> list[np.ndarray]:
    return [images[max(index - frames, 0)] for index in range(len(images))]


def blend(one: list[np.ndarray], other: list[np.ndarray], share: float) -> list[np.ndarray]:
    """Mix `share` of the second stream into the first."""
    return [cv2.addWeighted(a, 1 - share, b, share, 0) for a, b in zip(one, other, strict=True)]


def test_pixels_move_where_the_memory_holds_something_else(clip, moving):
    assert not any(mask.any() for mask in moving[:8])  # of the warmup
    for index, mask in enumerate(moving[8:], 8):
        right = 4 + STEP * index + SQUARE
        assert mask[32:60, 40:right].mean() > 0.7  # where it is and where it was a moment ago
        assert not mask[:20].any() and not mask[72:].any()
    assert not np.any(find_moving([clip[0]] * FRAMES))


def test_pixels_are_still_away_from_the_square_also_under_a_cameras_noise(clip, still):
    for index, mask in enumerate(still):
        assert mask[:16].mean() > 0.95 and mask[76:].mean() > 0.95
        left = 4 + STEP * (index + 1)
        assert mask[34:58, left + 4 : left + SQUARE - 4].mean() < 0.1
    before, after = noisy(clip[0], 0, 3), noisy(clip[0], 1, 3)
    assert find_still(before, after, find_motion(before, after)).mean() > 0.7


def structure(clip, moving, outputs) -> float:
    """Compare outputs with the source itself as the output without memory, at a few frames."""
    alone = {index: find_edges(clip[index]) for index in (9, 10, 12, 13)}
    found = moving_structure(edges(clip), edges(outputs), alone, moving)
    assert found is not None
    return found


def test_ghosts_and_smearing_lower_the_structure_that_moves(clip, moving):
    assert structure(clip, moving, clip) == pytest.approx(1)
    assert structure(clip, moving, [255 - image // 2 for image in clip]) > 0.97  # a style of it
    found = [structure(clip, moving, blend(clip, delayed(clip, 4), share)) for share in (0, 0.25, 0.5)]
    assert found == sorted(found, reverse=True) and found[1] < 0.97 and found[2] < 0.85
    smeared = [np.mean(clip[max(i - 3, 0) : i + 1], axis=0).astype(np.uint8) for i in range(FRAMES)]
    assert structure(clip, moving, smeared) < 0.9
    assert structure(clip, moving, [cv2.GaussianBlur(image, (0, 0), 3) for image in clip]) < 0.97
    assert structure(clip, moving, delayed(clip, 1)) < 0.9


def test_what_stands_does_not_count_as_structure_that_moves(clip, moving):
    outputs = [image.copy() for image in clip]
    for image in outputs:
        image[:16] = 0  # the ground above the square is lost
    assert structure(clip, moving, outputs) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("frames", [0, 1, 3, 8])
def test_the_lag_of_a_stream_is_how_late_it_is(clip, moving, frames):
    assert lag(edges(clip), edges(delayed(clip, frames)), moving) == frames


def test_the_lag_is_that_of_the_stronger_image(clip, moving):
    assert lag(edges(clip), edges(blend(clip, delayed(clip, 2), 0.2)), moving) == 0
    assert lag(edges(clip), edges(blend(clip, delayed(clip, 2), 0.8)), moving) == 2


def test_flicker_counts_where_nothing_moves_only(clip, still):
    alone = {index: noisy(clip[index], index, 8) for index in (9, 10, 12, 13)}
    calm = [noisy(image, 100 + index, 4) for index, image in enumerate(clip)]
    restless = [noisy(image, 100 + index, 16) for index, image in enumerate(clip)]
    assert still_flicker(calm, alone, still) == pytest.approx(0.5, abs=0.05)
    assert still_flicker(restless, alone, still) == pytest.approx(2, abs=0.2)
    for index, image in enumerate(calm[1:]):
        image[~still[index] & ~still[min(index + 1, FRAMES - 2)]] = 255 * (index % 2)
    assert still_flicker(calm, alone, still) < 0.6  # the rest may blink


def test_what_cannot_be_measured_is_none(clip, moving, still):
    nothing = [np.zeros((SIDE, SIDE), bool)] * FRAMES
    images = {9: clip[9], 10: clip[10]}
    maps = {index: find_edges(image) for index, image in images.items()}
    flat = [np.full_like(image, 9) for image in clip]
    assert moving_structure(edges(clip), edges(clip), maps, nothing) is None
    assert moving_structure(edges(clip), edges(clip), {}, moving) is None
    assert moving_structure(edges(clip), edges(clip), dict(enumerate(edges(flat))), moving) is None
    assert lag(edges(clip), edges(clip), nothing) is None
    assert lag(edges(clip), edges(flat), moving) is None
    assert still_flicker(clip, images, nothing) is None
    assert still_flicker(clip, {9: clip[9]}, still) is None  # no pair
    assert still_flicker(clip, {9: flat[9], 10: flat[10]}, still) is None  # nothing to compare with
    assert seams(flat, 8) is None


def test_offsets_of_cells_are_seams(clip):
    assert seams([noisy(image, 0, 20) for image in clip], 8) == pytest.approx(1, abs=0.05)
    random = np.random.default_rng(0)
    found = []
    for height in (0, 8, 24):
        cells = random.uniform(-height, height, (SIDE // 8, SIDE // 8, 1)).repeat(8, 0).repeat(8, 1)
        found.append(seams([np.clip(image + cells, 0, 255).astype(np.uint8) for image in clip], 8))
    assert found == sorted(found) and found[1] > 1.05 and found[2] > 1.5
    shifted = np.roll(cells, 4, axis=(0, 1))  # steps inside the cells
    assert seams([np.clip(image + shifted, 0, 255).astype(np.uint8) for image in clip], 8) < 1


def test_the_perceptual_distance_sees_softness_lost_strokes_and_other_strokes(clip):
    image = clip[0]
    assert perceptual_distance(image, image) == 0
    blurred = [perceptual_distance(cv2.GaussianBlur(image, (0, 0), blur), image) for blur in (0.5, 1, 2, 4)]
    assert blurred == sorted(blurred) and blurred[0] > 0
    assert 0.2 < perceptual_distance(np.full_like(image, 128), image) < 1
    assert blurred[0] < perceptual_distance(texture(SIDE, 5), image) < 1
    assert perceptual_distance(image // 2 + 60, image) > 0.01  # half the contrast
    odd = image[:50, :37]
    assert perceptual_distance(odd, odd) == 0
