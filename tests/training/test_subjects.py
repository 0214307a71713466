"""The subject of a photograph is cut out along its outline."""

from types import SimpleNamespace

import cv2
import numpy as np
import openvino
import pytest
import torch
from helpers.material import write_material
from openvino import opset13 as ops

from live2diff.training import photographs
from live2diff.training.materials import cutout
from live2diff.training.subjects import recoloured, subjects
from live2diff.training.teachers import convert_transposed


@pytest.fixture
def material(tmp_path, monkeypatch):
    """Return a folder whose last photograph has a disc; the mask of the tests is the red channel."""
    folder = write_material(tmp_path / "material")
    plain = np.zeros((300, 400, 3), np.uint8)
    disc = cv2.circle(plain.copy(), (250, 150), 80, (0, 60, 255), -1)  # BGR
    for name, image in (("y_plain.png", plain), ("z_disc.png", disc)):
        cv2.imwrite(str(folder / "photographs" / name), image)
    monkeypatch.setattr(photographs, "material", folder)
    return folder


def test_a_subject_is_cut_out_along_its_outline(material):
    *_, disc = subjects(material)
    assert disc.shape[0] == disc.shape[1] and abs(len(disc) - 161) < 6
    opaque = disc[..., 3] > 127
    assert abs(opaque.mean() - np.pi / 4) < 0.03 and not opaque[:15, :15].any()
    assert np.abs(np.median(disc[opaque][:, :3], axis=0) - [255, 60, 0]).max() < 3


def test_a_subject_keeps_its_outline_in_other_colours(material):
    *_, disc = subjects(material)
    image = recoloured(np.random.default_rng(1), disc, 64)
    assert image.shape == (64, 64, 4) and image.dtype == np.float32
    assert abs((image[..., 3] > 127).mean() - np.pi / 4) < 0.03


def test_cutouts_are_subjects_only_where_there_is_material(material, monkeypatch):
    found = len(subjects(material))
    assert 0 < found < len(photographs.photographs(material)[0])
    monkeypatch.setattr(photographs, "material", None)
    assert subjects(None) == []
    assert cutout(np.random.default_rng(0), 48).shape == (48, 48, 4)


def test_the_layer_of_mediapipe_is_a_transposed_convolution():
    random = np.random.default_rng(0)
    image, weight = (random.normal(size=shape).astype(np.float32) for shape in ((1, 6, 4, 3), (2, 2, 2, 3)))
    bias = np.float32([0.5, -1.0])
    inputs = [ops.parameter(array.shape, np.float32) for array in (image, weight, bias)]
    node = SimpleNamespace(get_input=lambda number: inputs[number].output(0))
    model = openvino.Core().compile_model(openvino.Model(convert_transposed(node), inputs), "CPU")
    output = model([image, weight, bias])[0]  # height, width, channels
    tensors = torch.from_numpy(image.transpose(0, 3, 1, 2)), torch.from_numpy(weight.transpose(3, 0, 1, 2))
    expected = torch.nn.functional.conv_transpose2d(*tensors, torch.from_numpy(bias), stride=2)
    assert output.shape == (1, 12, 8, 2)
    assert np.allclose(output.transpose(0, 3, 1, 2), expected, atol=1e-5)
