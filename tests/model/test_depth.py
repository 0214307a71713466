"""The depth estimator: what a frame does not change is computed once."""

from copy import deepcopy

import pytest
import torch
from helpers.checkpoints import build_tiny_hybrid_dpt
from torch.testing import assert_close

from live2diff.model.depth import inverse_depth, standardize_weights


@pytest.mark.parametrize("times", [1, 2], ids=["once", "saved and loaded"])
def test_weights_standardized_once_give_the_same_depth(times, monkeypatch):
    torch.manual_seed(0)
    estimator = build_tiny_hybrid_dpt().eval()
    frames = torch.rand(2, 3, 48, 80) * 2 - 1
    with torch.no_grad():
        expected = inverse_depth(estimator, frames)
        for _ in range(times):
            loaded = build_tiny_hybrid_dpt().eval()
            loaded.load_state_dict(estimator.state_dict())
            standardize_weights(estimator := loaded)
        monkeypatch.setattr(torch.nn.functional, "batch_norm", None)  # by which the library does it
        assert_close(inverse_depth(estimator, frames), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_standardized_only_once():
    estimator = build_tiny_hybrid_dpt()
    standardize_weights(estimator)
    before = deepcopy(estimator.state_dict())
    standardize_weights(estimator)
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
