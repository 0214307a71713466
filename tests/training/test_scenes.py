"""Rendered clips: their depth is the true one."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from live2diff.training.render import Box, Ellipsoid, Plane, View, rotation
from live2diff.training.scenes import KINDS, sample_scene

LIGHT = np.array([0.0, -0.65, 0.0])
GREY = np.full((4, 4, 3), 128, np.float32)


def still(time: float) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(3), np.zeros(3)


def view(yaw: float = 0.0) -> View:
    return View(64, 2.0, np.array([0.0, -1.0, 0.0]), rotation(yaw), LIGHT)


def wall(distance: float) -> Plane:
    return Plane(np.array([-2.0, -4.0, distance]), np.array([4.0, 0, 0]), np.array([0, 4.0, 0]), GREY)


def test_a_wall_ahead_is_as_far_as_it_is():
    seen = view()
    wall(5.0).draw(seen)
    assert_allclose(seen.inverse_depth, 1 / 5, rtol=1e-5)
    assert_allclose(seen.image, 128)


def test_depth_is_along_the_view_and_not_along_the_ray():
    seen = view(yaw=0.5)
    wall(5.0).draw(seen)
    x = (np.arange(64) - 31.5) / 64  # at a focal length of 64 pixels
    assert_allclose(seen.inverse_depth[10], (np.cos(0.5) - x * np.sin(0.5)) / 5, rtol=1e-4)


def test_the_floor_comes_nearer_down_the_image():
    seen = view()
    Plane(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), GREY).draw(seen)
    y = (np.arange(64) - 31.5) / 64
    assert_allclose(seen.inverse_depth[:, 5], y.clip(0), atol=1e-6)


@pytest.mark.parametrize("solid", [Box, Ellipsoid])
def test_a_solid_is_as_far_as_its_front_and_hides_what_is_behind(solid):
    seen, centre = view(), np.array([0.0, -1.0, 3.0])
    wall(5.0).draw(seen)
    body = solid(centre, np.array([0.5, 0.5, 1.0]), GREY, np.eye(3), still)
    body.draw(seen, rotation(0), centre)
    assert_allclose(seen.inverse_depth[32, 32], 1 / 2, rtol=1e-3)
    assert_allclose(seen.inverse_depth[2, 2], 1 / 5, rtol=1e-5)
    hidden = seen.inverse_depth.copy()
    body.draw(seen, rotation(0), centre + np.array([0, 0, 6]))
    assert_array_equal(seen.inverse_depth, hidden)


def test_a_box_that_passes_the_camera_is_cut_off_and_not_turned_over():
    seen = view()
    beside = np.array([1.5, -1.0, 0.0])
    Box(beside, np.array([0.5, 1.0, 4.0]), GREY, np.eye(3), still).draw(seen, rotation(0), beside)
    x = (np.arange(64) - 31.5) / 64
    clear = np.abs(x - 1 / 4) > 1 / 64  # of the far edge, which is soft
    assert_allclose(seen.inverse_depth[32][clear], np.where(x > 1 / 4, x, 0)[clear], atol=1e-5)


def test_rotation_is_a_rotation():
    turn = rotation(0.3, -0.2, 0.1)
    assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert_allclose(np.linalg.det(turn), 1)
    assert_allclose(rotation(0.3) @ [0, 0, 1], [np.sin(0.3), 0, np.cos(0.3)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_a_function_of_its_seed(kind):
    images, depth = sample_scene(np.random.default_rng(3), 48, 2, kind)
    again, depth_again = sample_scene(np.random.default_rng(3), 48, 2, kind)
    assert_array_equal(images, again)
    assert_array_equal(depth, depth_again)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_have_their_shapes_and_ranges_and_are_seldom_alike(kind):
    clips = [sample_scene(np.random.default_rng(seed), 32, 1, kind) for seed in range(4)]
    for images, depth in clips:
        assert images.shape == (1, 32, 32, 3) and images.dtype == np.uint8
        assert depth.shape == (1, 32, 32) and depth.dtype == np.float32
        assert depth.min() >= 0 and depth.max() <= 1
        assert images.std() > 5 and depth.std() > 0.005
    assert len({images.tobytes() for images, _ in clips}) == 4


def test_the_images_and_the_depth_move_together():
    moved = [[], []]
    for seed, kind in enumerate([*KINDS, *KINDS]):
        images, depth = sample_scene(np.random.default_rng(seed), 48, 8, kind)
        moved[0].append(np.abs(images[-1].astype(int) - images[0]).mean())
        moved[1].append(np.abs(depth[-1] - depth[0]).mean())
    assert min(moved[0]) > 0.3 and min(moved[1]) > 1e-4
