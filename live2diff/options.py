"""What the page and the command line both take to choose a model, told once."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline


def lora_of(text: str) -> tuple[str, float]:
    """`FILE:WEIGHT`, or `FILE` alone for weight 1."""
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:  # the colon of C:\\ or of nothing
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in a weight, like style.safetensors:0.8"
        ) from None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare them on a command line."""
    parser.add_argument(
        "--model", default="auto", help="auto, nano, live2diff, a folder or a Hub name (default: %(default)s)"
    )
    parser.add_argument("--style", help="a style by its name, such as pencil; a wrong name lists them all")
    parser.add_argument("--styles", metavar="FILE", help="a JSON file with more styles")
    parser.add_argument(
        "--lora",
        dest="loras",
        action="append",
        type=lora_of,
        default=[],
        metavar="FILE:WEIGHT",
        help="a LoRA for every style; may be given several times",
    )
    parser.add_argument(
        "--checkpoints",
        default="models",
        metavar="FOLDER",
        help="where the files of styles are (%(default)s)",
    )
    parser.add_argument("--eager", action="store_true", help="PyTorch's own kernels only: slower")
    parser.add_argument(
        "--safety-checker",
        action=argparse.BooleanOptionalAction,
        help="blur what the safety checker objects to (default: on a Space, with the full model)",
    )


def load_model(options: argparse.Namespace) -> Live2DiffPipeline:
    """The pipeline that the options ask for; says on standard error what it is doing.

    Raises:
        ValueError, OSError: as `weights.load` and `styles.read_styles`.
    """
    from .styles import read_styles
    from .weights import load

    return load(
        options.model,
        style=options.style,
        loras=options.loras,
        styles=read_styles(options.styles) if options.styles else None,
        checkpoints=options.checkpoints,
        eager=options.eager,
        safety_checker=options.safety_checker,
        report=partial(print, file=sys.stderr, flush=True),
    )
