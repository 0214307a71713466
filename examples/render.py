"""Renders what the page shows before anybody waits: pictures of each style, a result for each preset.

    python examples/render.py                     # all of it, with the nano model
    python examples/render.py thumbnails          # live2diff/page/styles/NAME.jpg
    python examples/render.py samples             # live2diff/page/styles/large/NAME.jpg
    python examples/render.py results             # examples/results/CLIP-STYLE.mp4 and .jpg, by presets.json

Run it again whenever the nano model was trained anew.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import live2diff  # noqa: E402 - started as a script, it does not find the package beside its folder
from live2diff.pipeline import Live2DiffPipeline  # noqa: E402
from live2diff.styles import SAMPLES, THUMBNAILS  # noqa: E402
from live2diff.video.reader import read_frames  # noqa: E402
from live2diff.video.translate import translate  # noqa: E402

EXAMPLES = ROOT / "examples"
FACE = EXAMPLES / "admiral.mp4", (slice(66, 306), slice(32, 352))  # rows and columns, 4:3
WARM = 14  # frames before the one that is shown: the stream's memory has filled by then
THUMBNAIL = 160, 120  # width, height
THUMBNAIL_QUALITY = 82  # some 6 kB each
SAMPLE = EXAMPLES / "admiral.mp4", slice(72, 360)  # rows, 4:3; not among what nano was trained on
POSTER = 320, 240
RESULT_BYTES = 400_000
QUALITIES = range(22, 40, 2)  # x264's crf, best first


class Ready:
    """Frames made before, as a stream: what `translate` asks for, without the model."""

    def __init__(self, frames: list[np.ndarray]):
        self.frames = iter(frames)

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        return [next(self.frames)]

    def flush(self) -> list[np.ndarray]:
        return []


def thumbnails(pipe: Live2DiffPipeline) -> None:
    """A face in each of the model's styles."""
    clip, (rows, columns) = FACE
    frames = [frame[rows, columns] for frame, _ in islice(read_frames(clip), WARM + 1)]
    THUMBNAILS.mkdir(exist_ok=True)
    for name in pipe.styles:
        picture = cv2.resize(pipe(frames, style=name)[-1], THUMBNAIL, interpolation=cv2.INTER_AREA)
        path = THUMBNAILS / f"{name}.jpg"
        cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.1f} kB", flush=True)


def samples(pipe: Live2DiffPipeline) -> None:
    """What waits where the visitor's picture will be: half a camera's picture, half of it in each style."""
    clip, rows = SAMPLE
    frames = [frame[rows] for frame, _ in islice(read_frames(clip), WARM + 1)]
    SAMPLES.mkdir(exist_ok=True)
    for name in pipe.styles:
        picture = halves(frames[-1], pipe(frames, style=name)[-1])
        path = SAMPLES / f"{name}.jpg"
        cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.1f} kB", flush=True)


def results(pipe: Live2DiffPipeline) -> None:
    """Each preset's clip in its style, as good as it may be in `RESULT_BYTES`."""
    (EXAMPLES / "results").mkdir(exist_ok=True)
    for preset in json.loads((EXAMPLES / "presets.json").read_text()):
        clip = EXAMPLES / preset["clip"]
        settings = {name: preset[name] for name in ("style", "prompt", "seed")}
        frames = pipe((frame for frame, _ in read_frames(clip)), **settings)
        path = EXAMPLES / "results" / f"{clip.stem}-{preset['style']}.mp4"
        for quality in QUALITIES:
            for _ in translate(Ready(frames), clip, path, quality=quality):
                pass
            if path.stat().st_size <= RESULT_BYTES:
                break
        poster(clip, path)
        size = path.stat().st_size / 1e3
        print(f"{path.relative_to(ROOT)}: {len(frames)} frames, {size:.0f} kB at {quality}", flush=True)


def halves(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The left half of the one beside the right half of the other."""
    picture = after.copy()
    middle = picture.shape[1] // 2
    picture[:, :middle] = before[: picture.shape[0], :middle]
    picture[:, middle - 1 : middle + 1] = 255
    return picture


def poster(clip: Path, result: Path) -> None:
    """A picture beside the result: the middle frame of both, half of the one and half of the other."""
    before, after = (np.stack([frame for frame, _ in read_frames(path)]) for path in (clip, result))
    right = halves(before[len(before) // 2], after[len(after) // 2])
    height, width = right.shape[:2]
    crop = min(width, height * 4 // 3), min(height, width * 3 // 4)
    top, side = (height - crop[1]) // 3, (width - crop[0]) // 2  # faces are above the middle
    picture = cv2.resize(
        right[top : top + crop[1], side : side + crop[0]], POSTER, interpolation=cv2.INTER_AREA
    )
    cv2.imwrite(str(result.with_suffix(".jpg")), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", nargs="*", choices=["thumbnails", "samples", "results", []], default=[])
    told = words.parse_args()
    pipe = live2diff.load("nano")
    for name, render in {"thumbnails": thumbnails, "samples": samples, "results": results}.items():
        if not told.what or name in told.what:
            render(pipe)


if __name__ == "__main__":
    main()
