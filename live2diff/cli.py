"""Options shared by the page and the command lines."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import is_out_of_memory
from .styles import read_styles, resolve_files

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline

MIN_SIDE, MAX_SIDE = 16, 8192
MODEL_NAMES = ("auto", "nano", "live2diff")  # these win over a folder of the same name


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn an out-of-memory error of torch inside the block into a ValueError with the advice."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"There is not enough memory. {advice}") from None


def size_of(text: str) -> int | tuple[int, int]:
    """Parse `512` (about 512x512 pixels in the clip's aspect ratio) or `640x360` (width and height)."""
    sides = [int(part) if part.isdecimal() else 0 for part in text.lower().split("x")]
    if len(sides) > 2 or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number like 512 nor a size like 640x360 (sides {MIN_SIDE} to {MAX_SIDE})"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def t_index_list_of(text: str) -> list[int]:
    """Parse `30,36,42`, denoising steps as indices into the 50 LCM steps."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 30,36,42") from None


def lora_of(text: str) -> tuple[str, float]:
    """Parse `FILE:WEIGHT`, or `FILE` alone for weight 1."""
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:  # no colon, or that of C:\\
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in a weight, like style.safetensors:0.8"
        ) from None


def operator_options() -> list[str]:
    """Split the environment variable LIVE2DIFF_OPTIONS into arguments, as a Space has no command line.

    Raises:
        ValueError: a quote is not closed, or the text ends in a single backslash.
    """
    text = os.environ.get("LIVE2DIFF_OPTIONS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = str(error).lower()
        raise ValueError(f"LIVE2DIFF_OPTIONS cannot be read, {reason}: {text}. Correct its quotes.") from None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_model` reads."""
    add = parser.add_argument
    model_help = "auto, nano, live2diff, a folder or a Hub name (default: %(default)s)"
    add("--model", default="auto", help=model_help)
    add("--style", help="name of a style, for example pencil; an unknown name lists all")
    add("--styles", metavar="FILE", help="a JSON file with more styles")
    lora_help = "a LoRA for every style; may be given several times"
    lora: dict[str, Any] = {"dest": "loras", "action": "append", "default": [], "metavar": "FILE:WEIGHT"}
    add("--lora", type=lora_of, help=lora_help, **lora)
    files_help = "folder with the weight files of styles (default: %(default)s)"
    add("--checkpoints", default="models", metavar="FOLDER", help=files_help)
    add("--eager", action="store_true", help="use PyTorch's own kernels only: slower")
    compile_help = "compile the model's blocks on a CUDA GPU: minutes at the first start (default)"
    add("--compile", dest="compiled", default=True, action=argparse.BooleanOptionalAction, help=compile_help)
    checker_help = "blur what the safety checker flags (default: on a Space, with the full model)"
    add("--safety-checker", action=argparse.BooleanOptionalAction, help=checker_help)


def load_model(options: argparse.Namespace, **settings: Any) -> Live2DiffPipeline:
    """Load the pipeline that the options of `add_model_options` name, with progress on standard error.

    `settings` are arguments of `loading.load` that override the options.

    Raises:
        ValueError, OSError: as `loading.load` and `styles.read_styles`.
    """
    report = partial(print, file=sys.stderr, flush=True)
    return model_loader(options, **{"report": report} | settings)()


def model_loader(options: argparse.Namespace, **settings: Any) -> Callable[[], Live2DiffPipeline]:
    """Return a picklable function that loads the model like `load_model`, but silently.

    Relative paths that exist become absolute, as another process may have another working directory.
    """
    styles = None
    if options.styles:
        styles = read_styles(options.styles)
        styles = {name: resolve_files(style, Path.cwd()) for name, style in styles.items()}
    from .loading import load  # imports torch, which takes seconds

    names = ("style", "loras", "checkpoints", "eager", "compiled", "safety_checker")
    arguments = {name: getattr(options, name) for name in names}
    arguments["checkpoints"] = absolute(options.checkpoints)
    arguments["loras"] = [(absolute(lora), scale) for lora, scale in options.loras]
    model = options.model if options.model in MODEL_NAMES else absolute(options.model)
    return partial(load, model, **arguments | {"styles": styles} | settings)


def absolute(name: str) -> str:
    """Return the absolute path of an existing file or folder; any other name unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
