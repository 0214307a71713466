"""One training clip: a scene in motion, the camera's degraded view of it, and its styled target.

The target is made of the clean clip, and what the model sees is not clean: sensor noise, exposure that jumps,
compression, lost frames. So it learns to look at the things and not at the noise; and as the noise differs
from frame to frame, it learns that earlier frames help.
"""

from typing import Any

import cv2
import numpy as np

from .photographs import view_of
from .scenes import sample_scene
from .targets import PAINTED, TARGETS
from .text import sample_mixture, sample_prompt, sample_subject

# Styles whose strokes follow the image alone. A dab of paint jumps when a pixel changes; here it has to stay
# on the thing it was put on, so each target keeps most of the one before, warped by the clip's motion. The
# other styles have a pattern that belongs to the paper and may not be warped.
CARRIED = (*PAINTED, "neon")
KEPT = 0.7  # share of the warped target; older strokes fade within three frames or so


def sample_clip(random: np.random.Generator, size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip, uint8 `[frames, size, size, 3]` RGB, and its inverse depth.

    Depth is float32 `[frames, size, size]` in `[0, 1]`; near is 1. In one clip of four, frames are lost.
    """
    lost = 1 + int(random.integers(0, 3)) if frames > 1 and random.random() < 0.25 else 0
    clip, depth = sample_scene(random, size, frames + lost)
    kept = np.sort(random.permutation(frames + lost)[:frames])
    return clip[kept], depth[kept]


def through_camera(random: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """Degrade the clip as a webcam and a network would; uint8 in and out."""
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


def styled(clip: np.ndarray, style: str) -> np.ndarray:
    """Return the clip's target in a style, uint8 `[frames, height, width, 3]`."""
    targets = [TARGETS[style](frame) for frame in clip]
    if style in CARRIED and len(clip) > 1:
        flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        y, x = np.mgrid[: clip.shape[1], : clip.shape[2]].astype(np.float32)
        for i in range(1, len(clip)):
            motion = flow.calc(greys[i], greys[i - 1], None)  # where each pixel was one frame ago
            where = (x + motion[..., 0], y + motion[..., 1])
            before = cv2.remap(greys[i - 1], *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            carried = cv2.remap(targets[i - 1], *where, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            # Trust the motion where it explains the image; what comes into view keeps its own target.
            error = cv2.blur(cv2.absdiff(before, greys[i]), (3, 3)).astype(np.float32)
            trust = KEPT * np.clip(1.5 - error / 12, 0, 1)[..., None]
            targets[i] = np.rint(trust * carried + (1 - trust) * targets[i]).astype(np.uint8)
    return np.stack(targets)


StyledClip = tuple[np.ndarray, np.ndarray, np.ndarray, str]  # camera, clean and styled clip, prompt


def sample_styled(random: np.random.Generator, frames: int, size: int) -> list[StyledClip]:
    """Return a clip of `frames` in a style; for single images a photograph, or two frames of a scene."""
    if frames > 1:
        return [in_some_style(random, sample_clip(random, size, frames)[0])]
    if random.random() < 0.6:
        return [in_some_style(random, view_of(random, size).astype(np.uint8)[None])]
    clip, _ = sample_clip(random, size, 4)
    return [in_some_style(random, clip[i : i + 1]) for i in (0, 3)]


def in_some_style(random: np.random.Generator, clip: np.ndarray) -> StyledClip:
    """Return the clip as the camera gives it, clean and styled, and a prompt for that style.

    One in twenty has no style: a prompt without style words leaves the image as it is. One in ten has two.
    """
    chance = random.random()
    if chance < 0.05:
        target, prompt = clip, sample_subject(random)
    elif chance < 0.15:
        first, second = random.choice(list(TARGETS), 2, replace=False)
        target = ((styled(clip, first).astype(np.uint16) + styled(clip, second)) // 2).astype(np.uint8)
        prompt = sample_mixture(random, first, second)
    else:
        style = random.choice(list(TARGETS))
        target, prompt = styled(clip, style), sample_prompt(random, style)
    return through_camera(random, clip), clip, target, prompt
