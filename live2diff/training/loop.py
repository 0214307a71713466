"""The one training loop: every part of the nano model is fitted by it, with a loss of its own."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import nn

AVERAGED = 100  # steps that the moving average of the parameters reaches back

Losses = dict[str, float]
Batch = TypeVar("Batch")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear rise over the first 3 % of `steps`, then half a cosine down to 2 % of `peak`."""
    rise = max(1, steps * 3 // 100)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def fit(
    name: str,
    module: nn.Module,
    batch_of: Callable[[int], Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, Losses]],
    parameters: Iterable[nn.Parameter],
    *,
    steps: int,
    peak: float,
    folder: Path,
    seed: int = 0,
    checkpoint_every: int = 100,
    preview: Callable[[Batch], np.ndarray] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Losses]]:
    """Minimise `loss_of(batch_of(step))`, yielding `(step, losses)` after each step.

    The next batch is made in a second thread meanwhile; so `batch_of` draws from a generator of its own. What
    the module has at the end is the moving average of its parameters over about the last `AVERAGED` steps.

    With each checkpoint `preview`, if there is one, draws what has been learnt so far, uint8 `[height, width,
    3]` RGB, to `folder/previews`.

    A checkpoint `folder/name.pt` is written every `checkpoint_every` steps and at the end; an earlier one
    found there is resumed. Randomness is seeded by (seed, step), so a resumed run sees what an unbroken one
    would have seen.
    """
    module.to(device)
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    average = [parameter.detach().clone() for parameter in parameters]
    file, start = folder / f"{name}.pt", 0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location=device)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(batch_of, start)
        for step in range(start, steps):
            batch = coming.result()
            coming = maker.submit(batch_of, min(step + 1, steps - 1))
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            loss, losses = loss_of(batch)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower its rate")
            module.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, max(1 / (step + 1), 1 / AVERAGED))
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                save(file, module, optimizer, average, step + 1)
                if preview:
                    write_picture(folder / "previews" / f"{name}-{step + 1:06}.png", preview(batch))
            yield step, losses
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)


def save(
    file: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[torch.Tensor],
    step: int,
) -> None:
    """Write a checkpoint."""
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
    }
    write_whole(file, lambda partial: torch.save(state, partial))


def write_whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a file that appears in one piece: killed in the middle, the old one is left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    write(partial)
    os.replace(partial, file)


def write_picture(file: Path, picture: np.ndarray) -> None:
    """Write uint8 `[height, width, 3]` RGB as a file."""
    file.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(file), picture[..., ::-1])
