"""Measure a model on clips: a table, and JSON as the last line."""

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
from ..benchmark.command import Record, add_options, check_options, settings_of, write_record
from ..cli import t_index_list_of
from ..command import run_main
from ..config import WARMUP_FRAMES
from ..streaming.settings import StreamSettings
from ..training import photographs
from ..video.reader import probe, read_frames
from .figures import DRIFT_FRAMES
from .measure import SOURCE, TARGET, describe, evaluate_style, make_scene, measure_drift
from .report import HEADER, SUMMARY, averages, clip_line, record_row, summaries, summary_rows
from .sheet import SUFFIXES, Sheet
from .variants import VARIANTS

FEWEST_FRAMES = WARMUP_FRAMES + 1
SHORTEST_DRIFT = WARMUP_FRAMES + 2 * DRIFT_FRAMES


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m live2diff.evaluation",
        description="Measures each style of a model on clips, with all its parts and without some, and the "
        "styles' targets beside it. Prints a table; the last line is JSON with everything.",
    )
    add = parser.add_argument
    add("clips", metavar="CLIP", nargs="+", type=Path, help="a video: mp4, webm, mov, ...")
    add("--model", default="auto", help="nano, live2diff, a folder or a Hub name (default: %(default)s)")
    add_options(parser)
    add("--styles", metavar="A,B", help="which styles (default: all of the model)")
    add("--prompt", default="", help="what the clip shows, in words")
    moments = "compare at N moments of a clip with new streams, each as much work as 16 frames"
    for name, default, text in (
        ("--frames", 64, "frames of each clip"),
        ("--drift", 600, "measure drift over N frames, 0 for no drift; takes longer than all the rest"),
        ("--moments", 6, f"{moments}; 0: without the figures moving and still"),
    ):
        add(name, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    add("--quick", action="store_true", help="only the unchanged model, no drift")
    add("--seed", type=int, default=0)
    add("--strength", type=float, help="above 0 (a touch of the style) up to 1 (all of it)")
    add("--t-index-list", type=t_index_list_of, metavar="30,36,42", help="the denoising steps as indices")
    add("--material", type=Path, help="of training.fetch, for the targets of nano's painted styles")
    add("--sheet", type=Path, metavar="FILE", help="write a contact sheet, .png or .jpg")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Check options and clips before the model is loaded.

    Raises:
        ValueError, OSError: an option or a clip cannot be used.
    """
    for name, value, least in (
        ("--frames", arguments.frames, FEWEST_FRAMES),
        ("--drift", arguments.drift or SHORTEST_DRIFT, SHORTEST_DRIFT),
        ("--moments", arguments.moments, 0),
    ):
        if value < least:
            raise ValueError(f"{name} {value} is too few: at least {least} are needed.")
    for clip in arguments.clips:
        frames = probe(clip).frame_count
        if frames < FEWEST_FRAMES:
            raise ValueError(f"{clip} has {frames} frames; at least {FEWEST_FRAMES} are needed.")
    check_options(arguments, arguments.sheet)
    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{arguments.sheet} must end in one of {', '.join(SUFFIXES)}.")


def evaluate_clip(
    pipeline: Live2DiffPipeline,
    path: Path,
    styles: list[str],
    settings: StreamSettings,
    arguments: argparse.Namespace,
    sheet: Sheet,
) -> tuple[Record, list[Record], list[Record]]:
    """Return the records of a clip, of its styles and variants, and of its drift; print each at once."""
    records, drifts = [], []
    frames = islice(read_frames(path), arguments.frames)
    scene = make_scene(pipeline, (frame for frame, _ in frames), settings)
    clip = {"clip": str(path), **describe(pipeline, scene)}
    print(clip_line(clip), HEADER, sep="\n", flush=True)
    sheet.add_clip(path.stem, len(scene.images))
    sheet.add(SOURCE, scene.images)
    for style in styles:
        variants = ["model"] if arguments.quick else VARIANTS
        found = evaluate_style(pipeline, scene, style, settings, variants, arguments.moments)
        for name, measured, outputs in found:
            records.append({"clip": str(path), "style": style, "variant": name, **measured})
            print(record_row(records[-1]), flush=True)
            sheet.add(row_label(style, name), outputs)
        if arguments.drift and not arguments.quick:
            measured = measure_drift(pipeline, scene, style, settings, arguments.drift)
            drifts.append({"clip": str(path), "style": style, **measured})
    print()
    return clip, records, drifts


def row_label(style: str, variant: str) -> str:
    """Return the label of a row of the contact sheet."""
    return style if variant == "model" else f"{style} {variant}"


def run(arguments: argparse.Namespace) -> None:
    """Measure and print; raise ValueError or OSError for bad input."""
    check(arguments)
    photographs.material = arguments.material
    pipeline, settings = load(arguments.model, arguments.device), settings_of(arguments)
    names = arguments.styles
    styles = list(pipeline.styles) if names is None else [name.strip() for name in names.split(",")]
    for style in styles:
        pipeline.preset(style)  # raises for an unknown style
    with closing(pipeline.stream(settings, style=styles[0])) as stream:  # raises for bad settings
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
        "settings": {**settings.model_dump(exclude_unset=True), "timesteps": timesteps},
        "aims": {name: aim for name, (_, _, aim) in SUMMARY.items() if aim},
        "clips": clips,
        "records": records,
        "drift": drifts,
        "averages": averages(records),
        "summary": summaries(records, drifts),
    }
    if len(clips) > 1:
        print(HEADER, *map(record_row, report["averages"]), "", sep="\n")
    print(*summary_rows(report["summary"]), "", sep="\n")
    print(f"{1 / seconds:.1f} frames a second on {report['device']} with {report['threads']} threads")
    if arguments.sheet is not None:
        sheet.save(arguments.sheet)
    rounded = json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 6))
    write_record(rounded, arguments.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when all is measured, 2 for bad input, 130 when interrupted."""
    return run_main(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
