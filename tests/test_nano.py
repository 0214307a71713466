"""The shipped model does what it is shipped for."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import live2diff
from live2diff.clip import read_frames
from live2diff.training.targets import TARGETS
from live2diff.weights import NANO

CLIP = Path(__file__).parents[1] / "examples" / "admiral.mp4"  # not among the training pictures


def look(pictures) -> np.ndarray:
    """What a style is told by: colours and the strength of lines, place by place; `[n, features]`."""
    features = []
    for picture in pictures:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))[..., None]
        features.append(
            cv2.resize(np.dstack([picture.astype(np.float32), edges]), (16, 16), cv2.INTER_AREA).ravel()
        )
    return np.stack(features)


@pytest.fixture(scope="module")
def translated() -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    pipeline = live2diff.load("nano", device="cpu")
    source = [cv2.resize(frame, (192, 256), interpolation=cv2.INTER_AREA) for frame, _ in read_frames(CLIP)][
        :10
    ]
    outputs = {}
    for style in live2diff.STYLES:
        stream = pipeline.stream(style=style, prompt="a woman")
        outputs[style] = [out for frame in source for out in stream.push(frame)] + stream.flush()
    return source, outputs


def test_each_style_looks_like_itself_and_like_no_other(translated):
    source, outputs = translated
    targets = {style: look([target(frame) for frame in source]) for style, target in TARGETS.items()}
    for style, frames in outputs.items():
        assert len(frames) == len(source)
        distance = {other: np.abs(look(frames) - target).mean() for other, target in targets.items()}
        distance["the source"] = np.abs(look(frames) - look(source)).mean()
        assert min(distance, key=distance.get) == style, f"{style}: {distance}"


def test_the_picture_follows_the_camera(translated):
    _, outputs = translated
    for frames in outputs.values():
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5


def test_it_is_small_and_safe():
    files = list(NANO.rglob("*"))
    assert sum(file.stat().st_size for file in files) < 30e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
