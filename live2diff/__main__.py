"""Translate a clip on the command line: `python -m live2diff IN OUT --style pencil`; see `--help`."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from .cli import add_model_options, explain_out_of_memory, load_model, run_main, size_of, t_index_list_of
from .streaming.scene_change import SCENE_CUT
from .streaming.settings import StreamSettings
from .video.reader import ClipInfo, probe
from .video.translate import Progress, translate
from .video.writer import check_target, even

SECONDS_BETWEEN_LINES = 5.0  # of progress, where the output is no terminal


def scene_cut_of(text: str) -> float | None:
    """Parse a number, or `off`."""
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
    add("source", metavar="IN", help="a video: mp4, webm, mov, mkv, gif, ...")
    add("target", metavar="OUT", help="the result, an .mp4 with the frames and sound of IN")
    add_model_options(parser)
    add("--prompt", help="describes what is in the video")
    add("--seed", type=int, default=0, help="same seed and clip, same result (default: 0)")
    add("--steps", type=int, choices=range(1, 5), help="denoising steps: more is slower")
    add("--strength", type=float, help="near 0 keeps the video, 1 is as far as the model goes")
    add("--t-index-list", type=t_index_list_of, metavar="30,36,42", help="the denoising steps one by one")
    cut_help = "image difference that starts a new cache (default: %(default)s)"
    add("--scene-cut", type=scene_cut_of, default=SCENE_CUT, metavar="0..1|off", help=cut_help)
    add("--size", type=size_of, metavar="N|WxH", help="512 (about 512x512 in all) or 640x360")
    add("--depth-every", type=int, metavar="K", help="estimate depth for every K-th frame (default: all)")
    skip_help = "repeat the last result for frames this similar (default: never)"
    add("--similar-frame-skip", type=float, metavar="THRESHOLD", help=skip_help)
    return parser


def sizes(
    size: int | tuple[int, int] | None, info: ClipInfo
) -> tuple[tuple[int, int] | None, int | tuple[int, int] | None]:
    """Return the (width, height) to resize frames to, and the working size of the stream."""
    if size is None:
        return None, None
    if isinstance(size, int):
        scale = size / math.sqrt(info.width * info.height)
        return (even(max(2, round(info.width * scale))), even(max(2, round(info.height * scale)))), size
    width, height = even(size[0]), even(size[1])
    return (width, height), (height, width)


def show(steps: Iterator[Progress]) -> int:
    """Print the progress, in one line on a terminal; return the number of frames."""
    is_terminal = sys.stderr.isatty()
    done, printed = 0, time.monotonic()
    for step in steps:
        done = step.done
        if is_terminal or time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            left = "" if step.seconds_left is None else f", {math.ceil(step.seconds_left)} s left"
            line = f"{step.done}/{step.total} frames{left}"
            line, end = (f"\r{line:<40}", "") if is_terminal else (line, "\n")
            print(line, end=end, file=sys.stderr, flush=True)
    if is_terminal:
        print(file=sys.stderr)
    return done


def run(options: argparse.Namespace) -> None:
    """Translate the clip; ValueError, OSError and NonFiniteError have a message for the user."""
    started = time.monotonic()
    check_target(options.source, options.target)
    frame_size, working_size = sizes(options.size, probe(options.source))
    names = StreamSettings.model_fields.keys() & vars(options).keys()
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = StreamSettings(**given | {"scene_cut": options.scene_cut, "size": working_size})
    with explain_out_of_memory("Try a smaller --size or fewer --steps."):
        pipe = load_model(options)  # takes seconds, so everything else is checked before
        with closing(pipe.stream(settings)) as stream:
            if stream.ignored_words:
                print(f"live2diff: the prompt is too long; not read: {stream.ignored_words}", file=sys.stderr)
            with closing(translate(stream, options.source, options.target, size=frame_size)) as steps:
                done = show(steps)
    print(f"{options.target}: {done} frames in {time.monotonic() - started:.1f} s", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Translate a clip; return the exit code."""
    return run_main(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
