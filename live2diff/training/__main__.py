"""`python -m live2diff.training nano` trains the shipped model from nothing; `... motion` trains the motion
modules of Stable Diffusion 1.5 on a folder of videos."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import torch

from ..cli import BAD_INPUT, INTERRUPTED
from ..config import WINDOW
from ..loading import NANO, load_base
from ..weights.convert import Sources, load_added
from .loop import Losses


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


# Those numbers of a MotionRecipe that can be told; without them it keeps its own.
NUMBERS = {
    "steps": (positive, "how many in all"),
    "clips": (positive, "clips in a batch"),
    "accumulate": (positive, "batches in a step"),
    "learning-rate": (float, "at its highest"),
    "rise-steps": (positive, "over which the learning rate comes up"),
    "caption-dropout": (float, "share of clips without their caption"),
    "ema-decay": (float, "of the moving average of the weights"),
    "workers": (positive, "threads that read clips"),
    "checkpoint-every": (positive, "so many steps"),
    "preview-every": (positive, "so many steps"),
}


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    told = argparse.ArgumentParser(prog="python -m live2diff.training", description=__doc__)
    commands = told.add_subparsers(metavar="nano|motion", required=True)

    nano = commands.add_parser("nano", help="the shipped model, from nothing")
    nano.set_defaults(run=nano_steps)
    nano.add_argument("--work", type=Path, default=Path("training-work"), help="folder of the checkpoints")
    nano.add_argument("--out", type=Path, default=NANO, help="where the finished model goes")
    nano.add_argument("--scale", type=float, default=1.0, help="fraction of the recipe's steps, for a trial")
    nano.add_argument("--photographs", type=Path, help="a folder of .jpg and .png to train on as well")
    nano.add_argument("--device", default="cpu", help="cpu (default) or cuda")

    motion = commands.add_parser("motion", help="motion modules and depth mapping for a frozen SD 1.5")
    motion.set_defaults(run=motion_steps)
    add = motion.add_argument
    add("--base", required=True, help="SD 1.5 or one like it: a diffusers folder or a Hub name")
    add("--videos", type=Path, required=True, help="a folder of videos")
    add("--captions", type=Path, required=True, help=".jsonl or .csv with the fields file_name and text")
    add("--depth", default=Sources.depth, help="a DPT: a folder or a Hub name (default: %(default)s)")
    add("--work", type=Path, default=Path("motion-work"), help="folder of the checkpoint and the previews")
    add("--out", type=Path, help="the result (default: motion.safetensors in the folder of --work)")
    add("--start-from", type=Path, help="an earlier result to go on from, instead of from nothing")
    add("--size", type=positive, default=256, help="pixels: clips are cropped to a square (default: 256)")
    add("--stride", type=positive, default=4, help="a clip has every so-manieth frame (default: 4)")
    add("--precision", choices=("no", "fp16", "bf16"), default=argparse.SUPPRESS, help="mixed precision")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    for name, (kind, about) in NUMBERS.items():
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, help=about)

    for command in (nano, motion):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--every", type=positive, default=50, help="print a line every so many steps")
    return told


def nano_steps(options: argparse.Namespace) -> Iterator[tuple[str, int, Losses]]:
    from .recipe import train_nano

    cv2.setNumThreads(1)  # the batches are small; torch has better use for the other cores
    torch.set_flush_denormal(True)
    sys.setswitchinterval(1e-4)  # the thread that makes batches must not hold up the one that dispatches
    if options.photographs and not options.photographs.is_dir():
        raise ValueError(f"There is no folder {options.photographs}.")
    return train_nano(
        options.work,
        options.out,
        scale=options.scale,
        seed=options.seed,
        photographs=options.photographs,
        device=options.device,
    )


def motion_steps(options: argparse.Namespace) -> Iterator[tuple[str, int, Losses]]:
    from accelerate import PartialState

    from .motion import MotionRecipe, train_motion
    from .videos import VideoFolder

    videos = VideoFolder(
        options.videos, options.captions, frames=WINDOW, stride=options.stride, size=options.size
    )
    torch.manual_seed(options.seed)  # decides what new motion modules begin with
    pipeline = load_base(options.base, options.depth)
    if options.size % pipeline.size_multiple:
        raise ValueError(f"--size is {options.size}; it must be a multiple of {pipeline.size_multiple}.")
    if options.start_from:
        load_added(pipeline.unet, options.start_from)
    told = {name: value for name, value in vars(options).items() if name in MotionRecipe.__annotations__}
    out = options.out or options.work / "motion.safetensors"
    for step, losses in train_motion(pipeline, videos, options.work, out, MotionRecipe(**told)):
        if PartialState().is_main_process:  # of several, one tells
            yield "motion", step, losses


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the model is trained, 2 for bad input, 130 when interrupted."""
    options = parser().parse_args(words)
    logging.basicConfig(format="%(message)s")
    start = time.monotonic()
    try:
        for stage, step, losses in options.run(options):
            if step % options.every == 0:
                figures = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
                print(f"{time.monotonic() - start:7.0f} s  {stage:6} {step:5}  {figures}", flush=True)
    except (ValueError, OSError) as error:
        print("live2diff.training: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "\nlive2diff.training: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
