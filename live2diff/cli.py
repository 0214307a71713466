"""What the page and the command lines take alike, told once."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import NonFiniteError

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline


BAD_INPUT = 2  # exit codes
INTERRUPTED = 130
MIN_SIDE, MAX_SIDE = 16, 8192


def size_of(text: str) -> int | tuple[int, int]:
    """`512` is about 512x512 pixels in the clip's own shape, `640x360` a width and a height."""
    parts = text.lower().split("x")
    try:
        sides = tuple(int(part) for part in parts)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number like 512 nor a size like 640x360 (sides {MIN_SIDE} to {MAX_SIDE})"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def t_index_list_of(text: str) -> list[int]:
    """`30,36,42`: which of the 50 scheduled steps are taken."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 30,36,42") from None


def operator_options() -> list[str]:
    """What the variable LIVE2DIFF_OPTIONS says: on a Space nobody can write a command line."""
    return shlex.split(os.environ.get("LIVE2DIFF_OPTIONS", ""))


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


def load_model(options: argparse.Namespace, **settings: Any) -> Live2DiffPipeline:
    """The pipeline that the options ask for; says on standard error what it is doing. `settings` of
    `weights.load` come before the options.

    Raises:
        ValueError, OSError: as `weights.load` and `styles.read_styles`.
    """
    from .loading import load
    from .styles import read_styles

    told = {
        "style": options.style,
        "loras": options.loras,
        "styles": read_styles(options.styles) if options.styles else None,
        "checkpoints": options.checkpoints,
        "eager": options.eager,
        "safety_checker": options.safety_checker,
        "report": partial(print, file=sys.stderr, flush=True),
    }
    return load(options.model, **told | settings)


def run_main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, run, and return the exit code.

    Args:
        parser: its `prog` begins every message.
        run: raises ValueError, OSError or NonFiniteError with a message for the user.
        arguments: of the command line; by default those of this process.

    Returns:
        0 on success, 2 for bad input or a failure that has a message, 130 when interrupted.
    """
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
