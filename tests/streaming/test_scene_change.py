"""Scene changes are detected, and nothing else is."""

from itertools import islice

import cv2
import numpy as np
import pytest
from helpers.paths import EXAMPLES

from live2diff.streaming.scene_change import SceneChangeDetector
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import read_frames

NAMES = ("admiral", "city", "raccoon", "room", "traveller")
Images = list[np.ndarray]


@pytest.fixture(scope="module")
def clips() -> dict[str, Images]:
    return {
        name: [cv2.resize(f, (128, 96)) for f, _ in islice(read_frames(EXAMPLES / f"{name}.mp4"), 40)]
        for name in NAMES
    }


def changed(images: Images, change) -> Images:
    """Apply `change(image, number)` to each image, and convert to 8 bits again."""
    return [np.clip(change(p.astype(np.float32), n), 0, 255).astype(np.uint8) for n, p in enumerate(images)]


def wobbling(images: Images) -> Images:
    """Shift each image at random by up to 4 % each way."""
    shifts = np.random.default_rng(0).integers(-5, 6, (len(images), 2))
    return [np.roll(p, tuple(shift), axis=(0, 1)) for p, shift in zip(images, shifts, strict=True)]


def pan(image: np.ndarray, frames_a_width: int) -> Images:
    """Pan a camera over a wide image, by one and a half widths of its view."""
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    wide = np.concatenate([large, large[:, ::-1]], axis=1)
    height, width = image.shape[:2]
    return [
        np.ascontiguousarray(wide[height // 2 : height // 2 + height, x : x + width])
        for x in (n * width // frames_a_width for n in range(3 * frames_a_width // 2))
    ]


def seen(images: Images, **options) -> tuple[list[int], list[int]]:
    """Return the frames at which it detected a cut, and those at which a change had settled."""
    detector, cuts, settled = SceneChangeDetector(**options), [], []
    for number, image in enumerate(images):
        detector.see(image)
        cuts += [number] * detector.cut
        settled += [number] * detector.settled
        if detector.settled or (detector.cut and number >= 8):  # as a stream does
            detector.remember()
    return cuts, settled


def test_every_cut_between_two_clips_is_detected_at_its_first_frame(clips):
    for first in NAMES:
        for second in NAMES:
            cuts, settled = seen(clips[first][:20] + clips[second][:20])
            assert (cuts, settled) == (([20], []) if first != second else ([], [])), (first, second)


def test_changes_within_a_scene_are_not_scene_changes(clips):
    for name, clip in clips.items():
        for what, images in {
            "itself": clip,
            "every third frame": clip[::3],
            "exposure": changed(clip, lambda p, n: p * (1 + 0.6 * np.sin(n / 10))),
            "light off and on": changed(clip, lambda p, n: p * (0.25 if 12 < n < 25 else 1)),
            "light of another colour": changed(clip, lambda p, n: p * (1 if n < 15 else (1.25, 1, 0.65))),
            "wobble": wobbling(clip),
            "pan": pan(clip[0], 100),
            "flash": changed(clip, lambda p, n: p + (170 if n == 20 else 0)),
        }.items():
            assert seen(images) == ([], []), (name, what)


def test_a_cut_within_the_first_frames_settles_eight_frames_later(clips):
    assert seen(clips["room"][:4] + clips["city"][:20]) == ([4], [11])


def test_a_fade_to_another_scene_settles_when_it_is_over(clips):
    mixed = [
        cv2.addWeighted(old, 1 - n / 12, new, n / 12, 0)
        for n, (old, new) in enumerate(zip(clips["room"][:12], clips["city"][:12], strict=True))
    ]
    cuts, settled = seen(clips["room"][:20] + mixed + clips["city"][12:40])
    assert cuts == [] and len(settled) == 1 and 20 < settled[0] < 45


def test_the_threshold_can_be_set_and_none_turns_detection_off(clips):
    spliced = clips["room"][:20] + clips["city"][:20]
    assert seen(spliced, threshold=None) == seen(spliced, threshold=0.99) == ([], [])
    for wrong in (0, 1, -1, 2.0):
        with pytest.raises(ValueError, match="scene_cut"):
            StreamSettings(scene_cut=wrong)


def test_a_fast_pan_settles_once_when_it_ends(clips):
    moving = pan(clips["city"][0], 30)
    cuts, settled = seen(moving[:1] * 10 + moving[:20] + moving[19:20] * 10)
    assert cuts == [] and len(settled) == 1 and settled[0] > 30


def test_after_a_cut_the_cache_holds_nothing_of_the_scene_before(tiny_pipeline, clips):
    """Streams with different pasts have the same cache, to the bit; without detection they differ."""

    def cached(past: str, scene_cut: float | None) -> list[np.ndarray]:
        stream = tiny_pipeline.stream(steps=1, seed=3, size=16, scene_cut=scene_cut)
        given = [len(stream.push(frame)) for frame in clips[past][:10] + clips["city"][:3]]
        assert given == [0] * 7 + [8] + [1] * 5  # no gap and no burst
        return [key[:, :11].numpy() for key in stream.state.cache.keys]

    def same(scene_cut: float | None) -> bool:
        pairs = zip(cached("room", scene_cut), cached("admiral", scene_cut), strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)

    assert same(0.45) and not same(None)
