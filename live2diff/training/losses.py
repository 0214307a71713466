"""Losses on images `[n, 3, height, width]` in `[-1, 1]`, from single pixels to what a critic sees."""

import h5py
import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from .teachers import VGG, teacher_file

CELL = 8  # pixels: the side of a cell of the latents
VGG_LAYERS = ("block1/layers/conv2d", "block1/layers/conv2d_1", "pool")  # by the names in the teacher's file
VGG_LAYERS += ("block2/layers/conv2d", "block2/layers/conv2d_1", "pool", "block3/layers/conv2d")
TEXTURE_SIDE = 16  # pixels: the window over which a texture is averaged
VGG_MEAN = (104.007, 116.669, 122.679)  # of blue, green, red


def image_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of pixels and, for sharp edges, of their differences."""
    error = output - target
    across, down = error[..., :, 1:] - error[..., :, :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.7 * (across.abs().mean() + down.abs().mean())


def contrast(images: torch.Tensor) -> torch.Tensor:
    """Return the deviation of the pixels in each small square, `[n, 3, squares, squares]`."""
    mean, square = (functional.avg_pool2d(power, 8, stride=4) for power in (images, images.square()))
    return ((square - mean.square()).clamp(min=0) + 1e-3).sqrt()


class Perception(nn.Module):
    """Features of the first blocks of a VGG16, for a perceptual loss (Johnson et al., 2016).

    It sees each image at half its size, or a quarter of it, at random: whole forms, or every stroke.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(VGG_MEAN).view(1, 3, 1, 1), persistent=False)
        with h5py.File(teacher_file(VGG)) as file:
            for number, name in enumerate(VGG_LAYERS):
                if name != "pool":
                    weight, bias = (
                        torch.from_numpy(np.asarray(file[f"{name}/vars/{part}"])) for part in (0, 1)
                    )
                    self.register_buffer(f"weight{number}", weight.permute(3, 2, 0, 1), persistent=False)
                    self.register_buffer(f"bias{number}", bias, persistent=False)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of each block's last layer."""
        x, found = images.flip(1) * 127.5 + 127.5 - self.get_buffer("mean"), []
        for number, name in enumerate(VGG_LAYERS):
            if name == "pool":
                found.append(x)
                x = functional.max_pool2d(x, 2)
            else:
                weight, bias = (self.get_buffer(f"{part}{number}") for part in ("weight", "bias"))
                x = functional.conv2d(x, weight, bias, padding=1).relu()
        return [*found, x]

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean absolute difference of the features and textures over the target's mean.

        A texture is the mean of each feature over a window: strokes count wherever in it they lie.
        """
        if torch.rand(()) < 0.5:
            output, target = functional.avg_pool2d(output, 2), functional.avg_pool2d(target, 2)
        else:
            half = output.shape[-1] // 2
            top, left = (CELL * int(torch.randint(half // CELL + 1, ())) for _ in range(2))
            output, target = (part[..., top : top + half, left : left + half] for part in (output, target))
        with torch.no_grad():
            wanted = self.features(target)
        forms, textures = [], []
        for level, (own, other) in enumerate(zip(self.features(output), wanted, strict=True)):
            difference, mean = own - other, other.mean().clamp(min=1e-3)
            side = TEXTURE_SIDE >> level
            forms.append(difference.abs().mean() / mean)
            textures.append(functional.avg_pool2d(difference, side, side // 2).abs().mean() / mean)
        return torch.stack(forms).mean(), torch.stack(textures).mean()


class Critic(nn.Module):
    """Judge patches of an image beside the camera's, for a style: above 0 for real targets.

    A projection discriminator (Miyato and Koyama, 2018) of patches of 18 pixels. Nothing is padded: patches
    that saw zeros beyond the border would be painted for them.
    """

    def __init__(self, text_channels: int, channels: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, channels // 2, 4, 2), nn.LeakyReLU(0.2),
            nn.Conv2d(channels // 2, channels, 4, 2), nn.LeakyReLU(0.2),
            nn.Conv2d(channels, channels, 3), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = nn.Conv2d(channels, 1, 1)
        self.style = nn.Linear(text_channels, channels, bias=False)

    def forward(self, camera: torch.Tensor, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return a score for each patch, `[n, 1, h, w]`; `text` is `[n, text_channels]`."""
        features = self.layers(torch.cat([camera, images], dim=1))
        return self.score(features) + (features * self.style(text)[..., None, None]).mean(1, keepdim=True)

    def losses(
        self, camera: torch.Tensor, output: torch.Tensor, target: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of the output, which leaves the critic as it is, and the critic's own (hinge)."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        text = text.detach()
        fooled = -functional_call(self, frozen, (camera, output, text)).mean()
        real, made = self(camera, target, text), self(camera, output.detach(), text)
        return fooled, (1 - real).relu().mean() + (1 + made).relu().mean()
