"""The training loop: AdamW, a moving average of the weights, and checkpoints to resume from.

`fit` trains every part of the nano model and the motion modules of a full model, each with its own loss.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from ..errors import NonFiniteError

# Settings that a resumed run may change; all others determine the result.
CHANGEABLE = ("steps", "gradient_checkpointing", "workers", "checkpoint_every", "preview_every")
Losses = dict[str, float]
Tensors = dict[str, torch.Tensor]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the optimisation; a step learns from `accumulate` batches on each GPU."""

    steps: int
    learning_rate: float  # at its highest
    rise_steps: int = 1  # steps of a linear warm-up
    final_rate: float = 1.0  # share of the learning rate at the end of a half cosine
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    accumulate: int = 1
    ema_decay: float = 0.9999  # of the moving average of the weights, the result
    seed: int = 0
    workers: int = 1  # threads that make batches ahead
    checkpoint_every: int = 100
    preview_every: int = 100

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1, (step + 1) / self.rise_steps)
        done = max(0, step - self.rise_steps) / max(1, self.steps - self.rise_steps)
        fall = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * rise * fall


class Objective(nn.Module):
    """Compute the losses of a module in `forward`, as processes that share gradients need it."""

    def __init__(self, module: nn.Module, loss_of: Callable[[Any, Any], Tensors]) -> None:
        super().__init__()
        self.module, self.loss_of = module, loss_of

    def forward(self, batch: Any) -> Tensors:
        """Return the losses of a batch."""
        return self.loss_of(self.module, batch)


def fit(
    name: str,
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch_of: Callable[[int], Batch],
    loss_of: Callable[[Any, Batch], Tensors],
    settings: LoopSettings,
    work: Path,
    accelerator: Accelerator,
    *,
    preview: Callable[[Batch], np.ndarray] | None = None,
    **data_settings: Any,
) -> Iterator[tuple[int, Losses]]:
    """Minimise the entry "loss" of `loss_of(module, batch_of(n))`; yield `(step, losses)` after each step.

    Batches are made ahead in threads, so `batch_of` must use its own generator. `preview(batch)`, uint8
    `[height, width, 3]`, is written to `work/previews`. At the end the parameters are their moving average.

    The same call resumes from the checkpoint `work/NAME.pt` and ends as an uninterrupted run would:
    randomness is seeded by (seed, step, process).

    Raises:
        ValueError: The checkpoint was started with other settings or other `data_settings`.
        NonFiniteError: The loss is NaN or infinite.
    """
    weights, accumulate = list(parameters.values()), settings.accumulate
    rates: dict[str, Any] = dict(
        lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    objective, optimizer = accelerator.prepare(
        Objective(module, loss_of), torch.optim.AdamW(weights, **rates)
    )
    average = EMAModel(weights, decay=settings.ema_decay)
    fixed = {key: value for key, value in asdict(settings).items() if key not in CHANGEABLE}
    fixed |= data_settings | {"processes": accelerator.num_processes}
    file, stateful = work / f"{name}.pt", {"optimizer": optimizer, "average": average}
    stateful |= {"scaler": accelerator.scaler} if accelerator.scaler else {}  # for fp16 only
    first = load_checkpoint(file, fixed, parameters, stateful)
    average.to(accelerator.device)
    numbers = range(first * accumulate, settings.steps * accumulate)
    batches = prefetch(batch_of, numbers, settings.workers)
    for step in range(first, settings.steps):
        torch.manual_seed(seed_of(settings.seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        step_batches = list(islice(batches, accumulate))
        losses = train_step(objective, weights, optimizer, step_batches, accelerator)
        if not math.isfinite(losses["loss"]):
            raise NonFiniteError(
                f"{name}: the loss is {losses['loss']} at step {step}; lower the learning rate."
            )
        average.step(weights)
        done, last = step + 1, step + 1 == settings.steps
        if accelerator.is_main_process and preview and (done % settings.preview_every == 0 or last):
            write_image(work / "previews" / f"{name}-{done:06}.png", preview(step_batches[-1]))
        if accelerator.is_main_process and (done % settings.checkpoint_every == 0 or last):
            save_checkpoint(file, done, fixed, parameters, stateful)
        yield step, losses
    average.copy_to(weights)
    accelerator.free_memory()  # else it would keep the optimizers of all stages


def train_step(
    objective: nn.Module,
    weights: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    accelerator: Accelerator,
) -> Losses:
    """Update the weights by the mean gradient of the batches; return the mean losses of all processes."""
    losses: Losses = {}
    for batch in batches:
        with accelerator.accumulate(objective):  # the optimizer steps at the last batch only
            with accelerator.autocast():
                parts = objective(batch)
            accelerator.backward(parts["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            if accelerator.sync_gradients:
                objective.zero_grad()  # not the optimizer's: frozen layers may have gradients too
        for key, value in parts.items():
            mean: Any = accelerator.reduce(value.detach(), "mean")
            losses[key] = losses.get(key, 0.0) + mean.item() / len(batches)
    return losses


def save_checkpoint(
    file: Path,
    step: int,
    settings: dict[str, Any],
    parameters: dict[str, nn.Parameter],
    stateful: dict[str, Any],
) -> None:
    """Write what a run needs to resume after `step` steps."""
    state = {name: part.state_dict() for name, part in stateful.items()}
    state |= {"parameters": {name: parameter.detach() for name, parameter in parameters.items()}}
    state |= {"step": step, "settings": settings}
    write_atomically(file, lambda partial: torch.save(state, partial))


@torch.no_grad()
def load_checkpoint(
    file: Path, settings: dict[str, Any], parameters: dict[str, nn.Parameter], stateful: dict[str, Any]
) -> int:
    """Load the file, if there is one; return the number of steps done.

    Raises:
        ValueError: The run was started with other settings.
    """
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location="cpu")
    for name, value in settings.items():
        if (before := state["settings"].get(name)) != value:
            raise ValueError(
                f"{file} was started with {name} {before}, now it is {value}: use the same value, or start "
                "another run in another --work folder."
            )
    for name, parameter in parameters.items():
        parameter.copy_(state["parameters"][name])
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    return state["step"]


def share_of(count: int, accelerator: Accelerator) -> int:
    """Return the number of a step's clips or images for each process, at least 1."""
    return max(1, count // accelerator.num_processes)


def seed_of(*numbers: int) -> int:
    """Hash numbers into one seed, so that no two steps or processes share their noise."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def prefetch(make: Callable[[int], Batch], numbers: range, workers: int) -> Iterator[Batch]:
    """Yield `make(number)` in order; `workers` threads work as many numbers ahead."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def write_atomically(file: Path, write: Callable[[Path], None]) -> None:
    """Write a file by `write(path)` so that it appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    write(partial)
    os.replace(partial, file)


def write_image(file: Path, image: np.ndarray) -> None:
    """Write a uint8 RGB image `[height, width, 3]` to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.ascontiguousarray(image[..., ::-1]))
