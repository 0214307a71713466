"""The shipped model does what it is shipped for."""

from itertools import combinations, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES
from torch.nn.functional import avg_pool2d

import live2diff
from live2diff import Live2DiffPipeline
from live2diff.evaluation.figures import style_distances
from live2diff.evaluation.figures import style_features as look
from live2diff.loading import NANO
from live2diff.model.vae import decode
from live2diff.training.text import SYNONYMS
from live2diff.video.reader import read_frames

FRAMES = 9
CLIP = EXAMPLES / "admiral.mp4"  # not among the training photographs
with np.load(Path(__file__).parent / "targets.npz") as _file:
    TARGETS = {style: _file[style].astype(np.float32) for style in _file.files}


@pytest.fixture(scope="module")
def pipeline() -> Live2DiffPipeline:
    return live2diff.load("nano", device="cpu")


@pytest.fixture(scope="module")
def source() -> list[np.ndarray]:
    frames = [frame for frame, _ in islice(read_frames(CLIP), FRAMES)]
    return [cv2.resize(frame, (192, 256), interpolation=cv2.INTER_AREA) for frame in frames]


@pytest.fixture(scope="module")
def translated(pipeline, source) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    return source, {style: pipeline(source, prompt="a woman", style=style) for style in pipeline.styles}


def nearest(images: list[np.ndarray], source: list[np.ndarray]) -> str:
    """The style to whose targets (of `measure/style_references.py`) they are nearest, or the source."""
    references = {**TARGETS, "the source": look(source)}
    distances = style_distances(look(images), references)
    return min(distances, key=lambda name: distances[name].mean())


@pytest.mark.parametrize("style", sorted(TARGETS))
def test_a_style_looks_like_itself_and_like_no_other(translated, style):
    source, outputs = translated
    assert nearest(outputs[style], source) == style


def test_no_two_styles_give_like_images(translated):
    """Comic and oil, the nearest to each other and to the camera, differ in strokes more than in colours."""
    source, outputs = translated
    images = {**outputs, "the source": source}
    for one, other in combinations(images, 2):
        difference = np.abs(np.stack(images[one]).astype(np.float32) - np.stack(images[other])).mean()
        assert difference > 8, f"{one} and {other} differ by {difference:.1f} of 255"


def test_memory_calms_the_noise_of_a_camera(source):
    def change(images: list[np.ndarray]) -> float:
        return np.abs(np.diff(np.stack(images).astype(np.float32), axis=0)).mean()

    pipeline = live2diff.load("nano", device="cpu", eager=True)  # 8 bits add some of their own
    random = np.random.default_rng(0)
    noise = 5 * random.standard_normal((14, *source[0].shape))
    noisy = list(np.clip(source[0] + noise, 0, 255).astype(np.uint8))
    alone = [pipeline([frame] * 8, style="oil")[-1] for frame in noisy[-3:]]
    assert change(pipeline(noisy, style="oil")[-3:]) < 0.8 * change(alone)


def test_the_image_follows_the_camera(translated):
    _, outputs = translated
    for frames in outputs.values():
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5


@pytest.mark.long
def test_everyday_words_choose_the_style(pipeline, source):
    missed = []
    for style, phrases in SYNONYMS.items():
        for phrase in phrases:
            found = nearest(pipeline(source, prompt=f"a {phrase} of a man with glasses"), source)
            if found != style:
                missed.append((phrase, found))
    print(f"{len(missed)} of {sum(map(len, SYNONYMS.values()))} missed: {missed}")
    assert not missed


@pytest.mark.long
def test_half_and_half_lies_between(pipeline, source):
    looks = {style: look(pipeline(source, style=style)).mean(axis=0) for style in SYNONYMS}
    shares = {}
    for one, other in combinations(SYNONYMS, 2):
        way = looks[other] - looks[one]
        mixed = look(pipeline(source, prompt=f"half {one}, half {other}")).mean(axis=0)
        shares[one, other] = float((mixed - looks[one]) @ way / (way @ way))
    outside = {pair: round(share, 2) for pair, share in shares.items() if not 0.2 < share < 0.8}
    print(f"{len(outside)} of {len(shares)} mixtures are not between 0.2 and 0.8 of the way: {outside}")
    assert len(outside) < 0.2 * len(shares)


@pytest.mark.long
def test_words_for_things_do_no_harm(pipeline, source):
    words = ["a dog on a beach", "xylophone quartz 1234", "a red car, masterpiece, best quality", "🙂 ¿qué?"]
    differences = {}
    for style in SYNONYMS:
        without = np.stack(pipeline(source, style=style)).astype(np.float32)
        for prompt in words:
            with_words = np.stack(pipeline(source, prompt=prompt, style=style))
            differences[style, prompt] = float(np.abs(with_words - without).mean())
            assert nearest(list(with_words), source) == style, (style, prompt)
    print({key: round(value, 1) for key, value in differences.items()})


@pytest.mark.parametrize("style", ["oil", "starry", "pastel"])  # those that had the most
def test_a_plain_image_has_no_frame(pipeline, style):
    plain = np.full((192, 256, 3), (150, 175, 210), np.uint8)
    grey = pipeline([plain] * 8, style=style)[-1].mean(axis=2)
    inner = grey[48:-48, 48:-48].mean()
    sides = [
        side[:, 48:-48].mean(axis=1) for side in (grey[:20], grey[-20:], grey[:, :20].T, grey[:, -20:].T)
    ]
    assert abs(np.concatenate(sides) - inner).max() < 8


def test_like_cells_have_one_colour(pipeline):
    """No pattern of the period of a cell shows in plain areas."""
    torch.manual_seed(0)
    latents = torch.randn(8, 32, 1, 1).expand(8, 32, 12, 12)
    with torch.no_grad():
        images = decode(pipeline.vae, latents)[..., 40:-40, 40:-40]
    assert avg_pool2d(images, 2).std((2, 3)).max() < 1 / 127.5


def test_it_is_small_and_safe():
    files = list(NANO.rglob("*"))
    assert sum(file.stat().st_size for file in files) < 30e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_prompts_that_the_page_offers_mix_a_style_in_and_things_do_nothing(pipeline, source):
    def pencil(**settings: object) -> np.ndarray:
        return np.stack(pipeline(source[:8], style="pencil", size=96, **settings)).astype(np.float32)

    plain = pencil()
    for prompt in pipeline.config.prompt_examples:
        assert np.abs(pencil(prompt=prompt) - plain).mean() > 8, prompt
    assert np.abs(pencil(prompt="a cat") - plain).mean() < 2
    way = pencil(mix_style="neon", mix=1.0) - plain
    half = pencil(mix_style="neon", mix=0.5) - plain
    assert 0.2 < (half * way).sum() / (way * way).sum() < 0.8
