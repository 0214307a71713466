"""Measures a model on clips: a table, and JSON as the last line. `--help` tells the options."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from .. import Live2DiffPipeline, load
from ..cli import BAD_INPUT, INTERRUPTED, size_of, t_index_list_of
from ..config import WARMUP_FRAMES
from ..styles import STYLES
from ..training.targets import TARGETS
from ..video.reader import probe, read_frames
from .figures import DEFINITIONS, DRIFT_FRAMES
from .measure import SOURCE, TARGET, describe, evaluate_style, make_scene, measure_drift
from .report import HEADER, Record, averages, clip_line, summaries, summary_lines, table_line
from .sheet import SUFFIXES, Sheet
from .variants import VARIANTS

FEWEST_FRAMES = WARMUP_FRAMES + 1
SHORTEST_DRIFT = WARMUP_FRAMES + 2 * DRIFT_FRAMES


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    told = argparse.ArgumentParser(
        prog="python -m live2diff.evaluation",
        description="Measures each style of a model on clips, with all its parts and without some, and the "
        "styles' targets beside it. Prints a table; the last line is JSON with everything.",
    )
    told.add_argument("clips", metavar="CLIP", nargs="+", type=Path, help="a video: mp4, webm, mov, gif, ...")
    told.add_argument(
        "--model", default="auto", help="nano, live2diff, a folder or a Hub name (default: %(default)s)"
    )
    told.add_argument("--styles", metavar="A,B", help="which styles (default: all that have a target)")
    told.add_argument("--prompt", default="", help="what is to be seen, in words")
    told.add_argument(
        "--frames", type=int, default=64, metavar="N", help="so many of each clip (default: 64)"
    )
    told.add_argument(
        "--drift",
        type=int,
        default=600,
        metavar="N",
        help="measure drift over N frames, 0 for not at all; takes longer than all the rest (default: 600)",
    )
    told.add_argument("--size", type=size_of, metavar="N|WxH", help="working size (default: the model's)")
    told.add_argument("--seed", type=int, default=0)
    told.add_argument("--steps", type=int, choices=range(1, 5), help="denoising steps")
    told.add_argument("--strength", type=float, help="low is a touch of the style, 1 all the model can do")
    told.add_argument("--t-index-list", type=t_index_list_of, metavar="30,36,42", help="the steps one by one")
    told.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest there is")
    told.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet, .png or .jpg")
    told.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well, indented")
    return told


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what can be told before the model is loaded."""
    for name, value, least in (
        ("--frames", arguments.frames, FEWEST_FRAMES),
        ("--drift", arguments.drift or SHORTEST_DRIFT, SHORTEST_DRIFT),
    ):
        if value < least:
            raise ValueError(f"{name} {value} is too few: at least {least} are needed.")
    for clip in arguments.clips:
        frames = probe(clip).frame_count
        if frames < FEWEST_FRAMES:
            raise ValueError(f"{clip} has {frames} frames; at least {FEWEST_FRAMES} are needed.")
    for path in (arguments.sheet, arguments.json):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {str(path.parent)!r} does not exist.")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{arguments.sheet} must end in one of {', '.join(SUFFIXES)}.")


def chosen_styles(told: str | None) -> list[str]:
    """The styles to measure.

    Raises:
        ValueError: one has no preset or no target.
    """
    known = [style for style in STYLES if style in TARGETS]
    styles = known if told is None else [name.strip() for name in told.split(",")]
    for style in styles:
        if style not in known:
            raise ValueError(f"There is no style {style!r} with a target. Choose from: {', '.join(known)}.")
    return styles


def told_settings(arguments: argparse.Namespace) -> Record:
    """The settings of `pipeline.stream` that were given; what was not is the model's own choice."""
    names = ("prompt", "seed", "steps", "strength", "t_index_list", "size")
    settings = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if isinstance(arguments.size, tuple):
        settings["size"] = arguments.size[::-1]  # (height, width)
    return settings


def open_pipeline(arguments: argparse.Namespace) -> Live2DiffPipeline:
    """The model.

    Raises:
        ValueError: there is no such model or device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if arguments.device and not available[arguments.device]:
        raise ValueError(f"There is no {arguments.device} device here; leave --device out.")
    return load(arguments.model, arguments.device)


def evaluate_clip(
    pipeline: Live2DiffPipeline,
    path: Path,
    styles: list[str],
    settings: Record,
    arguments: argparse.Namespace,
    sheet: Sheet,
) -> tuple[Record, list[Record], list[Record]]:
    """A clip's own record, those of its styles and variants, and those of its drift; printed as they come."""
    records, drifts = [], []
    frames = [frame for frame, _ in islice(read_frames(path), arguments.frames)]
    scene = make_scene(pipeline, frames, settings.get("size"))
    clip = {"clip": str(path), **describe(pipeline, scene)}
    print(clip_line(clip), HEADER, sep="\n", flush=True)
    sheet.add_clip(path.stem, len(scene.pictures))
    sheet.add(SOURCE, scene.pictures)
    for style in styles:
        for name, measured, outputs in evaluate_style(pipeline, scene, style, settings):
            records.append({"clip": str(path), "style": style, "variant": name, **measured})
            print(table_line(records[-1]), flush=True)
            sheet.add(row_label(style, name), outputs)
        if arguments.drift:
            measured = measure_drift(pipeline, scene, style, settings, arguments.drift)
            drifts.append({"clip": str(path), "style": style, **measured})
    print()
    return clip, records, drifts


def row_label(style: str, variant: str) -> str:
    """What a row of the contact sheet is called."""
    return style if variant == "model" else f"{style} {variant}"


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints; every bad value is a ValueError or an OSError with a message for a person."""
    check(arguments)
    styles = chosen_styles(arguments.styles)
    pipeline, settings = open_pipeline(arguments), told_settings(arguments)
    with closing(
        pipeline.stream(style=styles[0], **settings)
    ) as stream:  # it speaks up before any work is done
        timesteps = stream.schedule.timesteps.tolist()
    variants = [row_label(styles[0], name) for name in (*VARIANTS, TARGET) if name != "model"]
    sheet = Sheet([SOURCE, *styles, *variants], len(arguments.clips))
    clips, records, drifts = [], [], []
    for path in arguments.clips:
        clip, of_styles, of_drift = evaluate_clip(pipeline, path, styles, settings, arguments, sheet)
        clips.append(clip)
        records += of_styles
        drifts += of_drift
    seconds = fmean(record["seconds_per_frame"] for record in records if record["variant"] == "model")
    report = {
        "model": arguments.model,
        "device": str(pipeline.unet.device),
        "threads": torch.get_num_threads(),
        "frames_per_second": 1 / seconds,
        "settings": {**settings, "timesteps": timesteps},
        "definitions": DEFINITIONS,
        "clips": clips,
        "records": records,
        "drift": drifts,
        "averages": averages(records),
        "summary": summaries(records, drifts),
    }
    if len(clips) > 1:
        print(HEADER, *map(table_line, report["averages"]), "", sep="\n")
    print(*summary_lines(report["summary"]), "", sep="\n")
    print(f"{1 / seconds:.1f} frames a second on {report['device']} with {report['threads']} threads")
    report = json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 6))
    if arguments.sheet is not None:
        sheet.save(arguments.sheet)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all is measured, 2 for bad input, 130 when interrupted."""
    try:
        run(parser().parse_args(words))
    except (ValueError, OSError) as error:
        print("live2diff.evaluation: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nlive2diff.evaluation: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
