"""What each loss sees: its least value where nothing is wrong, more where something is."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.material import write_material
from helpers.paths import ROOT

from live2diff.training import photographs, teachers
from live2diff.training.losses import Critic, Perception, contrast
from live2diff.training.teachers import teacher_file

WITHOUT_OPENVINO = """
import sys
sys.modules["openvino"] = None  # importing it raises
from live2diff.evaluation.__main__ import main
sys.exit(main())
"""


def images(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "material", write_material(tmp_path_factory.mktemp("material")))
        yield


def test_contrast_is_that_of_each_square():
    flat, lines = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    lines[..., ::2] = 1
    assert contrast(lines).mean() > contrast(flat).mean() + 0.3


def test_perception_sees_a_shift_of_strokes_more_than_a_change_of_light(material):
    torch.manual_seed(0)
    see = Perception()
    target = images()
    assert see(target, target) == (0, 0)
    assert see(target.roll(2, -1), target)[0] > 2 * see(target + 0.03, target)[0]
    assert not list(see.parameters()) and not see.state_dict()


def test_a_texture_may_be_shifted_but_not_left_out(material):
    torch.manual_seed(0)
    see, target = Perception(), images()
    shifted, plain = (
        see(target.roll(2, -1), target),
        see(target.mean((2, 3), keepdim=True) + 0 * target, target),
    )
    assert shifted[1] < shifted[0] / 3
    assert plain[1] > 3 * shifted[1]


def test_the_critic_learns_from_its_own_loss_alone(material):
    torch.manual_seed(0)
    critic, output = Critic(16), images(1).requires_grad_()
    fooled, own = critic.losses(images(), output, images(2), torch.randn(2, 16))
    fooled.backward(retain_graph=True)
    assert output.grad is not None and all(parameter.grad is None for parameter in critic.parameters())
    output.grad = None
    own.backward()
    assert output.grad is None and all(parameter.grad is not None for parameter in critic.parameters())


def test_the_critic_judges_no_patch_that_reaches_over_the_border(material):
    torch.manual_seed(0)
    critic, text = Critic(16), torch.randn(2, 16)
    whole = critic(images(), images(1), text)
    part = (..., slice(16, -16), slice(16, -16))
    torch.testing.assert_close(critic(images()[part], images(1)[part], text), whole[..., 4:-4, 4:-4])


def test_a_missing_teacher_says_how_to_fetch_it(material):
    with pytest.raises(ValueError, match=r"training\.fetch FOLDER"):
        teacher_file("other.onnx")


def test_without_openvino_the_evaluation_has_its_help_and_a_painted_target_says_what_to_install(
    material, monkeypatch
):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPENVINO, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "--material" in done.stdout, done.stderr

    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it raises
    teachers.network.cache_clear()
    with pytest.raises(ValueError, match=r"OpenVINO.*pip install openvino"):
        teachers.paint(np.zeros((32, 32, 3), np.uint8), 0)
