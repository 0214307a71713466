"""What each loss sees: its least value where nothing is wrong, more where something is."""

import pytest
import torch
from helpers.material import write_material
from torch import nn
from torch.nn.functional import pixel_shuffle

from live2diff.training import photographs
from live2diff.training.losses import Critic, Perception, border_loss, contrast, make_plain, seam_loss
from live2diff.training.teachers import teacher_file


def images(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "material", write_material(tmp_path_factory.mktemp("material")))
        yield


def test_steps_at_the_borders_of_cells_are_seams_and_steps_inside_are_none():
    plain = torch.zeros(1, 3, 32, 32)
    border, inside = plain.clone(), plain.clone()
    border[..., 8:] = 0.5
    inside[..., 12:] = 0.5
    assert seam_loss(border, plain) > 0 == seam_loss(inside, plain) == seam_loss(plain, plain)


def test_after_make_plain_like_cells_have_one_colour_and_unlike_ones_still_have_details():
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 192, 3, padding=1)
    same, unlike = torch.ones(1, 5, 6, 6), torch.randn(1, 5, 6, 6)
    before, kept = (pixel_shuffle(layer(cells), 8)[..., 8:-8, 8:-8] for cells in (same, unlike))
    assert before.std((2, 3)).min() > 0.1
    make_plain(layer)
    after, details = (pixel_shuffle(layer(cells), 8)[..., 8:-8, 8:-8] for cells in (same, unlike))
    assert after.std((2, 3)).max() < 1e-5
    torch.testing.assert_close(after.mean((2, 3)), before.mean((2, 3)))
    assert details.std() > 0.8 * kept.std()


def test_basis_functions_that_go_on_smoothly_have_a_smaller_loss_than_tiles():
    window = torch.hann_window(25, periodic=False)[1:]
    basis = (window[:, None] * window).view(3, 8, 3, 8).permute(1, 3, 0, 2).flip(-1, -2)  # y, x, cells
    smooth = basis.reshape(1, 64, 1, 3, 3).expand(3, 64, 4, 3, 3).reshape(192, 4, 3, 3)
    tiles = smooth.mean(0, keepdim=True) + 0.05 * smooth
    assert 3 * border_loss(smooth) < border_loss(tiles)


def test_contrast_is_that_of_each_square():
    flat, lines = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    lines[..., ::2] = 1
    assert contrast(lines).mean() > contrast(flat).mean() + 0.3


def test_perception_sees_a_shift_of_strokes_more_than_a_change_of_light(material):
    torch.manual_seed(0)
    see = Perception()
    target = images()
    assert see(target, target) == 0
    assert see(target.roll(2, -1), target) > 2 * see(target + 0.03, target)
    assert not list(see.parameters()) and not see.state_dict()


def test_the_critic_learns_from_its_own_loss_alone(material):
    torch.manual_seed(0)
    critic, output = Critic(16), images(1).requires_grad_()
    fooled, own = critic.losses(images(), output, images(2), torch.randn(2, 16))
    fooled.backward(retain_graph=True)
    assert output.grad is not None and all(parameter.grad is None for parameter in critic.parameters())
    output.grad = None
    own.backward()
    assert output.grad is None and all(parameter.grad is not None for parameter in critic.parameters())


def test_a_missing_teacher_says_how_to_fetch_it(material):
    with pytest.raises(ValueError, match=r"training\.fetch FOLDER"):
        teacher_file("other.onnx")
