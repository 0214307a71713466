"""One training clip: a scene in motion, the camera's degraded view of it, and an image's styled target.

The target is made from the clean image; the model sees a degraded one: sensor noise, exposure that jumps,
compression, lost frames. So it learns to depict the scene and not the noise; and as the noise differs from
frame to frame, it learns to use earlier frames.
"""

import cv2
import numpy as np

from .photographs import view_of
from .scenes import sample_scene
from .targets import TARGETS
from .text import sample_mixture, sample_prompt, sample_subject


def sample_clip(random: np.random.Generator, size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip, uint8 `[frames, size, size, 3]` RGB, and its inverse depth.

    Depth is float32 `[frames, size, size]` in `[0, 1]`; near is 1. One clip of four lacks some frames.
    """
    lost = 1 + int(random.integers(0, 3)) if frames > 1 and random.random() < 0.25 else 0
    clip, depth = sample_scene(random, size, frames + lost)
    kept = np.sort(random.permutation(frames + lost)[:frames])
    return clip[kept], depth[kept]


def through_camera(random: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """Degrade three clips of four as a webcam and a network would; uint8 in and out."""
    if random.random() < 0.25:
        return clip
    noise, flicker = random.uniform(0, 8), random.uniform(0, 0.03)
    quality = int(random.uniform(35, 95)) if random.random() < 0.5 else None
    frames = []
    for frame in clip:
        grain = noise * random.standard_normal(frame.shape, np.float32)
        frame = np.clip(frame * (1 + random.normal(0, flicker)) + grain, 0, 255).astype(np.uint8)
        if quality:
            frame = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        frames.append(frame)
    return np.stack(frames)


# A "prompt" and the clip "clean"; for single images also "camera" and "target".
Styled = dict[str, np.ndarray | str]


def sample_styled(random: np.random.Generator, frames: int, size: int) -> list[Styled]:
    """Return a clip of `frames` frames; for 1 a photograph or two frames of a scene, with targets.

    One in twenty has no style: a prompt without style words keeps the image unchanged. One in ten has two.
    """
    if frames > 1:
        clips, has_target = [sample_clip(random, size, frames)[0]], False
    elif random.random() < 0.6:
        clips, has_target = [view_of(random, size).astype(np.uint8)[None]], True
    else:
        clip, has_target = sample_clip(random, size, 4)[0], True
        clips = [clip[:1], clip[3:]]
    found = []
    for clip in clips:
        chance, styles = random.random(), random.choice(list(TARGETS), 2, replace=False)
        styles = styles[: 0 if chance < 0.05 else 2 if chance < 0.15 else 1]
        if len(styles) == 2:
            prompt = sample_mixture(random, *styles)
        else:
            prompt = sample_prompt(random, *styles) if len(styles) else sample_subject(random)
        styled: Styled = {"clean": clip, "prompt": prompt}
        if has_target:
            styled["camera"] = through_camera(random, clip)
            targets = [TARGETS[style](clip[0]) for style in styles] or [clip[0]]
            styled["target"] = np.mean(targets, axis=0).astype(np.uint8)[None]
        found.append(styled)
    return found
