"""The shipped model does what it is shipped for."""

from itertools import combinations, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

import live2diff
from live2diff.clip import read_frames
from live2diff.evaluate.figures import look
from live2diff.training.targets import TARGETS
from live2diff.weights import NANO

FRAMES = 9
CLIP = Path(__file__).parents[1] / "examples" / "admiral.mp4"  # not among the training pictures


@pytest.fixture(scope="module")
def translated() -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    pipeline = live2diff.load("nano", device="cpu")
    frames = [frame for frame, _ in islice(read_frames(CLIP), FRAMES)]
    source = [cv2.resize(frame, (192, 256), interpolation=cv2.INTER_AREA) for frame in frames]
    outputs = {}
    for style in pipeline.styles:
        stream = pipeline.stream(style=style, prompt="a woman")
        outputs[style] = [out for frame in source for out in stream.push(frame)] + stream.flush()
    return source, outputs


@pytest.mark.parametrize("style", TARGETS)
def test_a_style_looks_like_itself_and_like_no_other(translated, style):
    source, outputs = translated
    references = {name: look([target(frame) for frame in source]) for name, target in TARGETS.items()}
    references["the source"] = look(source)
    distance = {
        name: np.abs(look(outputs[style]) - reference).mean() for name, reference in references.items()
    }
    assert min(distance, key=distance.get) == style, distance


def test_no_two_styles_give_like_pictures(translated):
    """Comic and oil, the nearest to each other and to the camera, differ in strokes more than in colours."""
    source, outputs = translated
    pictures = {**outputs, "the source": source}
    for one, other in combinations(pictures, 2):
        difference = np.abs(np.stack(pictures[one]).astype(np.float32) - np.stack(pictures[other])).mean()
        assert difference > 8, f"{one} and {other} differ by {difference:.1f} of 255"


def test_the_picture_follows_the_camera(translated):
    _, outputs = translated
    for frames in outputs.values():
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5


def test_it_is_small_and_safe():
    files = list(NANO.rglob("*"))
    assert sum(file.stat().st_size for file in files) < 30e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
