"""Clip in, clip out: `python -m live2diff IN OUT --style pencil`. `--help` tells the rest."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from .cli import BAD_INPUT, INTERRUPTED, add_model_options, load_model, size_of, t_index_list_of
from .errors import NonFiniteError
from .streaming.scene_change import SCENE_CUT
from .streaming.settings import StreamSettings
from .video.reader import ClipInfo, probe
from .video.translate import Progress, translate
from .video.writer import check_target, even

SECONDS_BETWEEN_LINES = 5.0  # of progress, where the output is no terminal


def scene_cut_of(text: str) -> float | None:
    """A number, or `off`."""
    try:
        return None if text == "off" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 to 1 nor off") from None


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    told = argparse.ArgumentParser(
        prog="python -m live2diff", description="Translates a video clip into another style, frame by frame."
    )
    told.add_argument("source", metavar="IN", help="a video: mp4, webm, mov, mkv, gif, ...")
    told.add_argument("target", metavar="OUT", help="the result, an .mp4 with the frames and sound of IN")
    add_model_options(told)
    told.add_argument("--prompt", help="what is to be seen, in words")
    told.add_argument("--seed", type=int, default=0, help="same seed and clip, same result (default: 0)")
    told.add_argument("--steps", type=int, choices=range(1, 5), help="denoising steps: more is slower")
    told.add_argument("--strength", type=float, help="low is a touch of the style, 1 all the model can do")
    told.add_argument("--t-index-list", type=t_index_list_of, metavar="30,36,42", help="the steps one by one")
    told.add_argument(
        "--scene-cut",
        type=scene_cut_of,
        default=SCENE_CUT,
        metavar="0..1|off",
        help="how different a picture must be to begin a new memory (default: %(default)s)",
    )
    told.add_argument("--size", type=size_of, metavar="N|WxH", help="512 (about 512x512 in all) or 640x360")
    told.add_argument(
        "--depth-every", type=int, metavar="K", help="look at depth every K frames only (default: every one)"
    )
    return told


def sizes(
    size: int | tuple[int, int] | None, info: ClipInfo
) -> tuple[tuple[int, int] | None, int | tuple[int, int] | None]:
    """The (width, height) that frames are resized to, and the working size to ask of the stream."""
    if size is None:
        return None, None
    if isinstance(size, int):
        scale = size / math.sqrt(info.width * info.height)
        frame = even(max(2, round(info.width * scale))), even(max(2, round(info.height * scale)))
        return frame, size
    width, height = even(size[0]), even(size[1])
    return (width, height), (height, width)


def settings_of(arguments: argparse.Namespace) -> StreamSettings:
    """Return the settings that were given; what was not is the model's own choice."""
    names = ("style", "prompt", "seed", "steps", "strength", "t_index_list", "depth_every")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return StreamSettings(**given, scene_cut=arguments.scene_cut)


def show(steps: Iterator[Progress]) -> int:
    """Tells how far it is, in one line on a terminal and in a few elsewhere. Returns the frames done."""
    terminal = sys.stderr.isatty()
    done, said = 0, time.monotonic()
    for step in steps:
        done = step.done
        if terminal or time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            left = "" if step.seconds_left is None else f", {math.ceil(step.seconds_left)} s left"
            line = f"{step.done}/{step.total} frames{left}"
            line, end = (f"\r{line:<40}", "") if terminal else (line, "\n")
            print(line, end=end, file=sys.stderr, flush=True)
    if terminal:
        print(file=sys.stderr)
    return done


def run(arguments: argparse.Namespace) -> None:
    """Translates the clip; every bad value is a ValueError or an OSError with a message for a person."""
    check_target(arguments.source, arguments.target)
    info = probe(arguments.source)

    begun = time.monotonic()
    settings = settings_of(arguments)
    frame_size, working_size = sizes(arguments.size, info)
    pipe = load_model(arguments)  # only now: it takes seconds, and a wrong file name should be told at once
    from torch import OutOfMemoryError  # it is there now; before, it would take seconds

    with closing(pipe.stream(settings.updated(size=working_size))) as stream:
        if stream.ignored_words:
            print(f"live2diff: the prompt is too long; not read: {stream.ignored_words}", file=sys.stderr)
        with closing(translate(stream, arguments.source, arguments.target, size=frame_size)) as steps:
            try:
                done = show(steps)
            except OutOfMemoryError:
                raise ValueError(
                    "There is not enough memory. Try a smaller --size or fewer --steps."
                ) from None
    seconds = time.monotonic() - begun
    print(f"{arguments.target}: {done} frames in {seconds:.1f} s", file=sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the clip is made, 2 for bad input, 130 when interrupted."""
    try:
        run(parser().parse_args(words))
    except (ValueError, OSError, NonFiniteError) as error:
        print("live2diff: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nlive2diff: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
