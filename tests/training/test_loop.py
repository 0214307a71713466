"""The training loop, on a model of two numbers: resuming, accumulation, the average, wrong settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import train_line
from helpers.paths import ROOT
from torch import nn

from live2diff.errors import NonFiniteError
from live2diff.training.loop import LoopSettings, Losses, fit, prefetch, seed_of

SETTINGS = LoopSettings(
    steps=7, learning_rate=0.1, rise_steps=2, final_rate=0.1, ema_decay=0.8, workers=2, checkpoint_every=2
)
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def batch_of(number: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(number).normal(size=(8, 1)).astype(np.float32))


def squared_error(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The error, with noise of torch's own generator."""
    return (module(x) - 3 * x + 0.1 * torch.randn_like(x)).square().mean()


def train(
    module: nn.Module, work: Path, settings: LoopSettings = SETTINGS, **more
) -> Iterator[tuple[int, Losses]]:
    """Fit a line to y = 3 x."""

    def loss_of(module: nn.Linear, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": squared_error(module, x), "bias": module.bias.sum()}

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=settings.accumulate)
    parameters = dict(module.named_parameters())
    return fit("line", module, parameters, batch_of, loss_of, settings, work, accelerator, **more)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("killed_after", [1, 2, 5, 6, 7])
def test_a_run_that_was_killed_ends_as_an_unbroken_one_to_the_bit(tmp_path, accumulate, killed_after):
    settings = replace(SETTINGS, accumulate=accumulate)
    unbroken, resumed = line(), line()
    expected = list(train(unbroken, tmp_path / "a", settings))
    killed = train(line(), tmp_path / "b", settings)
    begun = [next(killed) for _ in range(killed_after)]
    killed.close()
    rest = list(train(resumed, tmp_path / "b", settings))
    done = 7 if killed_after == 7 else killed_after // 2 * 2  # at the last checkpoint
    assert begun == expected[:killed_after] and rest == expected[done:]
    torch.testing.assert_close(dict(resumed.state_dict()), dict(unbroken.state_dict()), atol=0, rtol=0)


def test_it_learns_and_ends_with_the_average_of_the_weights(tmp_path):
    module, seen = line(), []
    for step, losses in train(module, tmp_path, replace(SETTINGS, steps=80)):
        assert losses.keys() == {"loss", "bias"}
        seen.append(module.weight.item())
        if step == 79:
            last = losses["loss"]
    assert last < 0.1 and abs(module.weight.item() - 3) < 0.3
    assert min(seen[-20:]) < module.weight.item() < max(seen[-20:])


def test_a_step_of_several_batches_moves_by_the_mean_of_their_gradients(tmp_path):
    together, apart = line(), line()
    (_, losses), *_ = train(together, tmp_path, replace(SETTINGS, steps=1, accumulate=3))
    torch.manual_seed(seed_of(0, 0, 0))
    parts = [squared_error(apart, batch_of(number)) for number in range(3)]
    (sum(parts) / 3).backward()
    nn.utils.clip_grad_norm_(apart.parameters(), 1.0)
    torch.optim.AdamW(apart.parameters(), lr=SETTINGS.rate_at(0)).step()
    assert losses["loss"] == pytest.approx(sum(part.item() for part in parts) / 3)
    torch.testing.assert_close(dict(together.state_dict()), dict(apart.state_dict()))


def test_two_processes_end_as_one_that_learns_from_the_batches_of_both(tmp_path):
    train_line.main(tmp_path / "one", 4)
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", *launch, "-m", "helpers.train_line", str(tmp_path / "two"), "4"]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    one, *both = (torch.load(tmp_path / name) for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    assert both[0] == both[1]
    torch.testing.assert_close(both[0], one)


def test_the_learning_rate_rises_and_falls_as_the_settings_say():
    rates = [replace(SETTINGS, steps=100, rise_steps=10).rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.01, rel=0.05)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    constant = LoopSettings(steps=100, learning_rate=0.1, rise_steps=4)
    assert {constant.rate_at(step) for step in range(4, 100)} == {0.1}


def test_other_settings_are_refused_and_more_steps_are_not(tmp_path):
    list(train(line(), tmp_path, size=64))
    with pytest.raises(ValueError, match=r"started with learning_rate 0\.1, now it is 0\.2"):
        next(train(line(), tmp_path, replace(SETTINGS, learning_rate=0.2), size=64))
    with pytest.raises(ValueError, match="started with size 64, now it is 128"):
        next(train(line(), tmp_path, size=128))
    more = replace(SETTINGS, steps=9, workers=1)
    assert [step for step, _ in train(line(), tmp_path, more, size=64)] == [7, 8]


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(tmp_path):
    module = line()
    run = train(module, tmp_path)
    for _ in range(3):
        next(run)
    with torch.no_grad():
        module.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="line: the loss is nan at step 3; lower the learning rate"):
        next(run)
    assert [step for step, _ in train(line(), tmp_path)] == [2, 3, 4, 5, 6]


def test_previews_are_written_at_their_own_pace(tmp_path):
    list(
        train(
            line(),
            tmp_path,
            replace(SETTINGS, preview_every=3),
            preview=lambda x: np.zeros((4, 4, 3), np.uint8),
        )
    )
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["line-000003.png", "line-000006.png", "line-000007.png"]


def test_batches_made_ahead_come_in_order_and_an_error_reaches_the_caller():
    def make(number: int) -> int:
        if number == 5:
            raise ValueError("no fifth")
        return number

    batches = prefetch(make, range(9), workers=3)
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no fifth"):
        next(batches)
