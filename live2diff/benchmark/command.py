"""Options, checks and output that the commands `benchmark` and `evaluation` share."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ..cli import size_of
from ..streaming.settings import StreamSettings

Record = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add device, size, steps and the JSON file."""
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest available")
    parser.add_argument("--size", type=size_of, metavar="N|WxH", help="working size (default: the model's)")
    parser.add_argument("--steps", type=int, choices=range(1, 5), help="denoising steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well, indented")


def check_options(arguments: argparse.Namespace, *outputs: Path | None) -> None:
    """Raise `ValueError` if there is no such device, or no folder for the JSON or one of `outputs`."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(arguments.device, True):
        raise ValueError(f"There is no {arguments.device} device here; leave --device out.")
    for path in (arguments.json, *outputs):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {str(path.parent)!r} does not exist.")


def settings_of(arguments: argparse.Namespace) -> StreamSettings:
    """Return the stream settings among the options; those left out keep their defaults."""
    names = StreamSettings.model_fields.keys() & vars(arguments).keys()
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if isinstance(arguments.size, tuple):
        given["size"] = arguments.size[::-1]  # (height, width)
    return StreamSettings(**given)


def table_row(*cells: str, widths: tuple[int, ...]) -> str:
    """Format a line of a table; negative widths align to the right."""
    columns = zip(cells, widths, strict=True)
    return " ".join(
        cell.ljust(width) if width >= 0 else cell.rjust(-width) for cell, width in columns
    ).rstrip()


def write_record(record: Record, path: Path | None) -> None:
    """Print the record as the last line, and write it to a file if one is given."""
    print(json.dumps(record))
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")
