"""Translate a clip or a folder of clips: `python -m live2diff IN OUT --style pencil`."""

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from .cli import add_model_options, explain_out_of_memory, load_model, size_of, t_index_list_of
from .command import run_main
from .streaming.cues import CuedStream, CueSheet, read_cues
from .streaming.scene_change import SCENE_CUT
from .streaming.settings import StreamSettings
from .video.folder import ClipJob, attempt, find_jobs, remove_partials, report
from .video.reader import probe
from .video.translate import Progress, sizes, translate
from .video.writer import check_target

SECONDS_BETWEEN_LINES = 5.0  # of progress, where stderr is not a terminal
ADVICE = "Try a smaller --size or fewer --steps."


def scene_cut_of(text: str) -> float | None:
    """Parse a number; `off` becomes None."""
    try:
        return None if text == "off" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 to 1 nor off") from None


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="live2diff", description="Translate a video clip into another style, frame by frame."
    )
    add = parser.add_argument
    source_help = "a video (mp4, webm, mov, mkv, gif, ...), or a folder of videos"
    add("source", metavar="IN", type=Path, help=source_help)
    target_help = "the result, an .mp4 with the frames and sound of IN; for a folder, another folder"
    add("target", metavar="OUT", type=Path, help=target_help)
    add_model_options(parser)
    add("--prompt", help="describes what is in the video")
    add("--seed", type=int, help="the same seed and clip give the same result (default: 0)")
    add("--steps", type=int, choices=range(1, 5), help="denoising steps: more is slower")
    add("--strength", type=float, help="near 0 keeps the video, 1 changes it as much as the model can")
    index_help = "the denoising steps, as indices into 50 LCM steps"
    add("--t-index-list", type=t_index_list_of, metavar="30,36,42", help=index_help)
    cut_help = f"image difference at which the cache is filled again (default: {SCENE_CUT})"
    add("--scene-cut", type=scene_cut_of, default=argparse.SUPPRESS, metavar="0..1|off", help=cut_help)
    add("--cues", metavar="FILE", help="a JSON file of changes at given frames, as the page saves it")
    size_help = "512 (about 512x512 pixels in the clip's aspect ratio) or 640x360"
    add("--size", type=size_of, metavar="N|WxH", help=size_help)
    add("--depth-every", type=int, metavar="K", help="estimate depth for every K-th frame (default: all)")
    skip_help = "repeat the last result for frames this similar (default: never)"
    add("--similar-frame-skip", type=float, metavar="THRESHOLD", help=skip_help)
    cluster_help = "translate a folder with Ray: on this machine, on the cluster it belongs to, or on another"
    add("--cluster", metavar="local|auto|ADDRESS", help=cluster_help)
    return parser


def show(steps: Iterator[Progress]) -> Generator[Progress]:
    """Print each `Progress` to stderr, on a terminal always in the same line, and yield it."""
    is_terminal = sys.stderr.isatty()
    printed = time.monotonic()
    for step in steps:
        if is_terminal or time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            left = "" if step.seconds_left is None else f", {math.ceil(step.seconds_left)} s left"
            line = f"{step.done}/{step.total} frames{left}"
            line, end = (f"\r{line:<40}", "") if is_terminal else (line, "\n")
            print(line, end=end, file=sys.stderr, flush=True)
        yield step
    if is_terminal:
        print(file=sys.stderr)


def settings_of(options: argparse.Namespace) -> StreamSettings:
    """Return the settings of the options; those not given come from the `start` of the cues.

    `--size` depends on the clip and is applied later: see `sizes`.
    """
    names = StreamSettings.model_fields.keys() & vars(options).keys()
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "scene_cut" in vars(options):
        given["scene_cut"] = options.scene_cut  # None for off
    if options.size is not None:
        given["size"] = None
    return StreamSettings(**{"scene_cut": SCENE_CUT, "size": None} | options.sheet.start | given)


class Translator:
    """Translate clips with the model and settings of the options; the model is loaded once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size, self.settings, self.sheet = options.size, settings_of(options), options.sheet
        with explain_out_of_memory(ADVICE):
            self.pipe = load_model(options)
        self.sheet.check(self.pipe, self.settings)
        self.ignored_words = ""

    def __call__(self, job: ClipJob) -> Generator[Progress]:
        """Translate a clip and yield its progress."""
        frame_size, working_size = sizes(self.size, job.source)
        settings = self.settings.updated(size=working_size) if working_size else self.settings
        with explain_out_of_memory(ADVICE):
            with closing(self.pipe.stream(settings)) as stream:
                if stream.ignored_words != self.ignored_words:
                    self.ignored_words = stream.ignored_words
                    words = f"live2diff: the prompt is too long; ignored: {stream.ignored_words}"
                    print(words, file=sys.stderr)
                cued = CuedStream(stream, self.sheet)
                with closing(translate(cued, job.source, job.target, size=frame_size)) as steps:
                    yield from steps
                for cue in cued.due:
                    words = f"live2diff: {job.source} has ended before the cue at frame {cue.frame}"
                    print(words, file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    """Translate the clip or folder that the options name; errors carry a message for the user."""
    started = time.monotonic()
    options.sheet = read_cues(options.cues) if options.cues else CueSheet({}, ())
    settings_of(options)  # check everything before the model is loaded, which takes seconds
    if options.source.is_dir():
        return run_folder(options)
    if options.cluster:
        raise ValueError(f"--cluster translates folders; {options.source} is not a folder.")
    job = ClipJob(options.source, options.target)
    check_target(job.source, job.target)
    probe(job.source)
    try:
        with closing(Translator(options)(job)) as steps:
            last = deque(show(steps), maxlen=1).pop()
    finally:
        remove_partials([job])
    print(f"{job.target}: {last.done} frames in {time.monotonic() - started:.1f} s", file=sys.stderr)


def run_folder(options: argparse.Namespace) -> None:
    """Translate the clips of a folder that have no result yet, one after the other or on a cluster."""
    jobs, skipped = find_jobs(options.source, options.target)
    if not jobs:
        outcomes = (outcome for outcome in ())
    elif options.cluster:
        from .cluster.folder import translate_on_cluster

        outcomes = translate_on_cluster(options.cluster, jobs, partial(Translator, options))
    else:
        translator = Translator(options)
        outcomes = (attempt(job, lambda job: show(translator(job))) for job in jobs)
    report(jobs, skipped, outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_main(build_parser(), run, arguments)


if __name__ == "__main__":
    from live2diff.__main__ import main as importable  # so that a cluster's workers can unpickle its classes

    sys.exit(importable())
