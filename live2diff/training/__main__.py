"""Train the shipped model from scratch (`nano`), or motion modules for Stable Diffusion 1.5 (`motion`)."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import cv2
import torch
from accelerate import PartialState

from ..command import run_main
from ..config import WINDOW
from ..loading import load_base
from ..weights.convert import Sources, load_added
from .loop import Losses


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


# The fields of MotionRecipe that are options; their defaults are the recipe's.
RECIPE_OPTIONS = {
    "steps": (positive, "number of steps"),
    "clips": (positive, "clips in a batch"),
    "accumulate": (positive, "batches in a step"),
    "learning-rate": (float, "the highest learning rate"),
    "rise-steps": (positive, "steps of the learning rate's linear warm-up"),
    "caption-dropout": (float, "share of clips trained without their caption"),
    "ema-decay": (float, "of the moving average of the weights"),
    "workers": (positive, "threads that read clips"),
    "checkpoint-every": (positive, "steps between checkpoints"),
    "preview-every": (positive, "steps between previews"),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.training", description=__doc__)
    commands = parser.add_subparsers(metavar="nano|motion", required=True)

    nano = commands.add_parser("nano", help="the shipped model, from scratch")
    nano.set_defaults(train=nano_steps)
    nano.add_argument("--work", type=Path, default=Path("training-work"), help="folder of the checkpoints")
    finished = "folder of the finished model (default: %(default)s)"
    nano.add_argument("--out", type=Path, default=Path("my-nano"), help=finished)
    nano.add_argument("--scale", type=float, default=1.0, help="fraction of the recipe's steps, for a trial")
    nano.add_argument(
        "--material", type=Path, required=True, help="teachers and photographs, fetched by training.fetch"
    )
    nano.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    faster = "bf16 is faster on a processor that multiplies bfloat16 (default: %(default)s)"
    nano.add_argument("--precision", choices=("no", "bf16"), default="no", help=faster)

    motion = commands.add_parser("motion", help="motion modules and depth mapping for a frozen SD 1.5")
    motion.set_defaults(train=motion_steps)
    add = motion.add_argument
    add("--base", required=True, help="SD 1.5 or a model like it: a diffusers folder or a Hub name")
    add("--videos", type=Path, required=True, help="a folder of videos")
    add("--captions", type=Path, required=True, help=".jsonl or .csv with the fields file_name and text")
    add("--depth", default=Sources.depth, help="a DPT: a folder or a Hub name (default: %(default)s)")
    add("--work", type=Path, default=Path("motion-work"), help="folder of the checkpoint and the previews")
    add("--out", type=Path, help="the result (default: motion.safetensors in the folder of --work)")
    add("--start-from", type=Path, help="an earlier result to continue from")
    add("--size", type=positive, default=256, help="pixels: clips are cropped to a square (default: 256)")
    add("--stride", type=positive, default=4, help="use every n-th frame of a video (default: 4)")
    add("--precision", choices=("no", "fp16", "bf16"), default=argparse.SUPPRESS, help="mixed precision")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    for name, (kind, about) in RECIPE_OPTIONS.items():
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, help=about)

    for command in (nano, motion):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--every", type=positive, default=50, help="print every n-th step (default: 50)")
    return parser


def nano_steps(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Losses]]:
    """Train the nano model."""
    from .recipe import train_nano

    cv2.setNumThreads(1)  # the batches are small, and torch needs the other cores
    torch.set_flush_denormal(True)
    sys.setswitchinterval(1e-4)  # threads that make batches must not delay the one that trains
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device here; leave --device out to train on the CPU.")
    names = ("material", "scale", "seed", "device", "precision")
    return train_nano(arguments.work, arguments.out, **{name: getattr(arguments, name) for name in names})


def motion_steps(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Losses]]:
    """Train motion modules."""
    from .motion import MotionRecipe, train_motion
    from .videos import VideoFolder

    shape = dict(frames=WINDOW, stride=arguments.stride, size=arguments.size)
    videos = VideoFolder(arguments.videos, arguments.captions, **shape)
    torch.manual_seed(arguments.seed)  # for the initialisation of new motion modules
    pipeline = load_base(arguments.base, arguments.depth)
    if arguments.size % pipeline.size_multiple:
        raise ValueError(f"--size is {arguments.size}; it must be a multiple of {pipeline.size_multiple}.")
    if arguments.start_from:
        load_added(pipeline.unet, arguments.start_from)
    names = {field.name for field in fields(MotionRecipe)}
    recipe = MotionRecipe(**{name: value for name, value in vars(arguments).items() if name in names})
    out = arguments.out or arguments.work / "motion.safetensors"
    for step, losses in train_motion(pipeline, videos, arguments.work, out, recipe):
        yield "motion", step, losses


def run(arguments: argparse.Namespace) -> None:
    """Train and print the losses of every n-th step; the same command resumes after an interruption.

    Only the main process prints.
    """
    logging.basicConfig(format="%(message)s")
    start = time.monotonic()
    for stage, step, losses in arguments.train(arguments):
        if step % arguments.every == 0 and PartialState().is_main_process:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"{time.monotonic() - start:7.0f} s  {stage:6} {step:5}  {figures}", flush=True)


if __name__ == "__main__":
    sys.exit(run_main(build_parser(), run))
