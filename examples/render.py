"""Render the images and clips that the page shows at once, and the README's animation.

`python -m examples.render` renders all with the nano model; with `thumbnails`, `overview`, `results` or
`moving` only that part. Run it again after the model was trained again.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image

import live2diff
from live2diff.pipeline import Live2DiffPipeline
from live2diff.styles import SAMPLES, THUMBNAILS
from live2diff.video.reader import read_frames
from live2diff.video.translate import translate

EXAMPLES = Path(__file__).parent
CLIP = EXAMPLES / "admiral.mp4"  # not among what nano was trained on
FACE = slice(66, 306), slice(32, 352)  # rows and columns, 4:3
BUST = slice(72, 360), slice(None)
WARM = 14  # frames before the one that is shown, to fill the stream's cache
RESULT_BYTES = 400_000
QUALITIES = range(22, 40, 2)  # x264's crf, best first
MOVING_CLIP = EXAMPLES / "speaker.mp4"
MOVING_STYLES = "ink", "starry"
CELL = 256, 192  # of the overview
MOVING_SIZE = 320, 240  # of each part: width, height


def replay(frames: list[np.ndarray]) -> SimpleNamespace:
    """Return a stream for `translate` that returns frames rendered before."""
    rendered = iter(frames)
    return SimpleNamespace(push=lambda frame: [next(rendered)], flush=list)


def write_image(path: Path, image: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Write a JPEG, scaled to `size` (width, height)."""
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size else image
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])
    print(f"{path}: {path.stat().st_size / 1e3:.1f} kB", flush=True)


def split(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Join the left half of one image and the right half of the other."""
    image, middle = after.copy(), after.shape[1] // 2
    image[:, :middle] = before[: image.shape[0], :middle]
    image[:, middle - 1 : middle + 1] = 255
    return image


def thumbnails(pipeline: Live2DiffPipeline) -> None:
    """Render a face in each style, and half a camera image beside half a result."""
    frames = [frame for frame, _ in islice(read_frames(CLIP), WARM + 1)]
    faces, busts = [frame[FACE] for frame in frames], [frame[BUST] for frame in frames]
    for name in pipeline.styles:
        write_image(THUMBNAILS / f"{name}.jpg", pipeline(faces, style=name)[-1], (160, 120))
        write_image(SAMPLES / f"{name}.jpg", split(busts[-1], pipeline(busts, style=name)[-1]))


def overview(pipeline: Live2DiffPipeline) -> None:
    """Render a frame of two clips in every style, side by side."""
    rows = []
    for name, part in (("admiral", BUST), ("raccoon", (slice(36, 324), slice(48, 432)))):
        frames = [frame[part] for frame, _ in islice(read_frames(EXAMPLES / f"{name}.mp4"), WARM + 1)]
        cells = [frames[-1], *(pipeline(frames, style=style)[-1] for style in pipeline.styles)]
        cells = [cv2.resize(cell, CELL, interpolation=cv2.INTER_AREA) for cell in cells]
        rows += [np.hstack(cells[: len(cells) // 2]), np.hstack(cells[len(cells) // 2 :])]
    write_image(EXAMPLES / "results.jpg", np.vstack(rows))


def results(pipeline: Live2DiffPipeline) -> None:
    """Render each preset's clip in its style, at the best quality that fits in `RESULT_BYTES`."""
    for preset in json.loads((EXAMPLES / "presets.json").read_text()):
        clip = EXAMPLES / preset["clip"]
        settings = {name: preset[name] for name in ("style", "prompt", "seed")}
        frames = pipeline((frame for frame, _ in read_frames(clip)), **settings)
        path = EXAMPLES / "results" / f"{clip.stem}-{preset['style']}.mp4"
        for quality in QUALITIES:
            for _ in translate(replay(frames), clip, path, quality=quality):
                pass
            if path.stat().st_size <= RESULT_BYTES:
                break
        write_image(path.with_suffix(".jpg"), poster(clip, path), (320, 240))


def moving(pipeline: Live2DiffPipeline) -> None:
    """Write a clip beside its translations as an animated WebP, every second frame."""
    frames = [frame for frame, _ in read_frames(MOVING_CLIP)]
    parts = [frames, *(pipeline(frames, style=style) for style in MOVING_STYLES)]
    rows = []
    for row in islice(zip(*parts, strict=True), 0, None, 2):
        small = [cv2.resize(part, MOVING_SIZE, interpolation=cv2.INTER_AREA) for part in row]
        rows.append(Image.fromarray(np.hstack(small)))
    path = EXAMPLES / "results" / "moving.webp"
    rows[0].save(path, save_all=True, append_images=rows[1:], duration=80, loop=0, quality=70, method=6)
    print(f"{path}: {path.stat().st_size / 1e3:.1f} kB", flush=True)


def poster(clip: Path, result: Path) -> np.ndarray:
    """Return half of the clip's middle frame beside half of the result's, cropped to 4:3."""
    before, after = ([frame for frame, _ in read_frames(path)] for path in (clip, result))
    image = split(before[len(before) // 2], after[len(after) // 2])
    height, width = image.shape[:2]
    crop = min(width, height * 4 // 3), min(height, width * 3 // 4)
    top, side = (height - crop[1]) // 3, (width - crop[0]) // 2  # faces are above the middle
    return image[top : top + crop[1], side : side + crop[0]]


if __name__ == "__main__":
    pipeline = live2diff.load("nano")
    for render in (thumbnails, overview, results, moving):
        if not sys.argv[1:] or render.__name__ in sys.argv[1:]:
            render(pipeline)
