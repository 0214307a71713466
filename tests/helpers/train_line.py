"""Fit y = 3 x in processes that share their gradients: `torchrun -m helpers.train_line FOLDER BATCHES`.

Of each step's BATCHES each process learns from its share; its weights go to `FOLDER/PROCESS.pt`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from live2diff.training.loop import LoopSettings, fit


def main(folder: Path, batches: int) -> None:
    accumulate = batches // Accelerator(cpu=True).num_processes
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)

    def batch_of(number: int) -> torch.Tensor:
        step, part = divmod(number, accumulate)
        seed = [step, accelerator.process_index * accumulate + part]
        return torch.from_numpy(np.random.default_rng(seed).normal(size=(8, 1)).astype(np.float32))

    def loss_of(module: torch.nn.Linear, x: torch.Tensor) -> dict[str, torch.Tensor]:
        # Not by the module's own forward, as the losses of nano's denoiser.
        return {"loss": (x * module.weight + module.bias - 3 * x).square().mean()}

    torch.manual_seed(accelerator.process_index)  # all go on from the first one's
    module, settings = torch.nn.Linear(1, 1), LoopSettings(5, 0.1, ema_decay=0.8, accumulate=accumulate)
    list(
        fit("line", module, dict(module.named_parameters()), batch_of, loss_of, settings, folder, accelerator)
    )
    torch.save(module.state_dict(), folder / f"{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
