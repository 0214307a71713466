"""What the motion modules learn from: noise that is new in each frame, and where they begin."""

import numpy as np
import torch

from live2diff.config import WINDOW
from live2diff.model.attention import TemporalTransformer, Window
from live2diff.training.denoiser import build_unet, initialise_as_average, sample_batch


def test_a_clip_that_stands_still_has_noise_of_its_own_in_each_frame():
    pool = {
        "clean": np.full((3, WINDOW, 64, 64, 3), 128, np.uint8),
        "depth": np.zeros((3, WINDOW, 8, 8), np.float16),
        "tokens": np.zeros((3, 77), np.int64),
    }
    batches = [sample_batch(np.random.default_rng(seed), pool, 3, 32) for seed in range(8)]
    cameras = torch.cat([batch["camera"].unflatten(0, (3, WINDOW)) for batch in batches])
    differing = (cameras[:, 1:] != cameras[:, :-1]).float().flatten(2).mean(dim=2).amin(dim=1)
    assert (differing > 0.2).float().mean() > 0.5  # of the clips, in all of their frames
    assert all((batch["clean"] == batch["clean"][0]).all() for batch in batches)


def test_a_motion_module_begins_as_the_average_of_what_is_alike():
    torch.manual_seed(0)
    module = next(each for each in build_unet().modules() if isinstance(each, TemporalTransformer))
    clean = 3 * torch.randn(1, module.proj_in.in_features, 8, 8)
    noisy = clean + 0.5 * torch.randn(WINDOW, *clean.shape[1:])
    spread = noisy.unflatten(1, (module.norm.num_groups, -1)).std(dim=(2, 3, 4)).mean(dim=0)
    initialise_as_average(module, spread)
    with torch.no_grad():
        calm = module(noisy, Window.clip(WINDOW), None, 0)
    assert (calm[9:] - calm[8:-1]).abs().mean() < 0.5 * (noisy[9:] - noisy[8:-1]).abs().mean()
    assert (calm - clean).mean(dim=(0, 2, 3)).abs().max() < 0.3, "positions leave no trace"
