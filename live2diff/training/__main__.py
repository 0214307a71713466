"""`python -m live2diff.training`: train the nano model from nothing."""

import argparse
import sys
import time
from pathlib import Path

import cv2
import torch

from ..weights import NANO
from .recipe import train_nano


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m live2diff.training", description=train_nano.__doc__)
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=NANO, help="where the finished model goes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the recipe's steps, for a trial"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="print a line every so many steps")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # the batches are small; torch has better use for the other cores
    torch.set_flush_denormal(True)
    sys.setswitchinterval(1e-4)  # the thread that makes batches must not hold up the one that dispatches
    start = time.monotonic()
    for stage, step, losses in train_nano(options.work, options.out, scale=options.scale, seed=options.seed):
        if step % options.every == 0:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"{time.monotonic() - start:7.0f} s  {stage:6} {step:5}  {figures}", flush=True)


if __name__ == "__main__":
    main()
