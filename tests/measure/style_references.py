"""Record what the style targets of an example clip look like, for `tests/nano`, which has no teacher.

Run `python tests/measure/style_references.py MATERIAL`, the folder that `live2diff.training.fetch` writes.
"""

import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from live2diff.evaluation.figures import style_features  # noqa: E402
from live2diff.training import photographs  # noqa: E402
from live2diff.training.targets import TARGETS  # noqa: E402
from live2diff.video.reader import read_frames  # noqa: E402

FILE = ROOT / "tests" / "nano" / "targets.npz"

if __name__ == "__main__":
    photographs.material = Path(sys.argv[1])
    frames = [frame for frame, _ in islice(read_frames(ROOT / "examples" / "admiral.mp4"), 9)]
    frames = [cv2.resize(frame, (192, 256), interpolation=cv2.INTER_AREA) for frame in frames]
    features = {style: style_features(map(target, frames)).mean(0) for style, target in TARGETS.items()}
    np.savez_compressed(FILE, **{style: each.astype(np.float16) for style, each in features.items()})
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1e3:.0f} kB")
