"""Measures how fast a model streams, beside other ways to do the same, in one run: a table, and JSON as the
last line. `--help` tells the options."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..cli import BAD_INPUT, INTERRUPTED, size_of
from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from ..runtime.cuda_graphs import CudaRuntime
from .measure import (
    Settings,
    Viewers,
    camera,
    eagerly,
    first_frame,
    interleave,
    milliseconds,
    prompt_change,
    stage_clock,
)
from .models import open_model, random_filter
from .report import lines
from .rivals import FrameByFrame, unet_calls

CAMERA = (480, 640)
FEWEST_ROUNDS = 2
EARLY = 200  # the frame that a late one is compared with
Record = dict[str, Any]


def counts_of(text: str) -> list[int]:
    """`1,2,4,8`: how many viewers at once."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,2,4,8")
    return counts


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    told = argparse.ArgumentParser(prog="python -m live2diff.benchmark", description=__doc__)
    told.add_argument(
        "--model", default="nano", help="nano, live2diff (random weights if none are at hand) or a folder"
    )
    told.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest there is")
    told.add_argument("--eager", action="store_true", help="PyTorch's own kernels, one by one")
    told.add_argument("--compiled", action="store_true", help="on a GPU: compile, not just capture graphs")
    told.add_argument("--frames", type=int, default=32, metavar="N", help="measured of each (%(default)s)")
    told.add_argument(
        "--streams", type=counts_of, default=[1, 2, 4, 8], metavar="1,2,4,8", help="viewers at once"
    )
    told.add_argument("--size", type=size_of, metavar="N|WxH", help="working size (default: the model's)")
    told.add_argument("--steps", type=int, choices=range(1, 5), help="denoising steps (default: the model's)")
    told.add_argument(
        "--long", type=int, metavar="N", help=f"compare the cost of frame N with that of frame {EARLY}"
    )
    told.add_argument(
        "--safety-checker", action="store_true", help="measure it as well; random weights of its real size"
    )
    told.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there as well, indented")
    return told


def told_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of `pipeline.stream` that were given; what was not is the model's own choice."""
    settings = {name: value for name in ("size", "steps") if (value := getattr(arguments, name)) is not None}
    if isinstance(arguments.size, tuple):
        settings["size"] = arguments.size[::-1]  # (height, width)
    return settings


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what can be told before the model is loaded."""
    if arguments.frames < FEWEST_ROUNDS:
        raise ValueError(f"--frames {arguments.frames} is too few: at least {FEWEST_ROUNDS} are needed.")
    if arguments.long is not None and arguments.long <= EARLY:
        raise ValueError(f"--long {arguments.long} is too few: frame {EARLY} is what it is compared with.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no cuda device here; leave --device out.")
    if arguments.compiled and (arguments.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--compiled is for a CUDA device; leave it out.")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise ValueError(f"{arguments.json}: the folder {str(arguments.json.parent)!r} does not exist.")


def device_name(device: torch.device) -> str:
    """The card, or the processor and how many of its threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        told = Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].strip("\t: ")
    except (OSError, IndexError):
        told = platform.processor() or platform.machine()
    return f"{told}, {os.cpu_count()} cores seen, {torch.get_num_threads()} threads"


def measure_one(pipeline: Live2DiffPipeline, settings: Settings, arguments: argparse.Namespace) -> Record:
    """One viewer: stages, the rivals beside it, memory, first frame, change of prompt."""
    device, rounds, frames = pipeline.unet.device, arguments.frames, camera(*CAMERA)
    with closing(pipeline.stream(**settings)) as stream:
        while not stream.warm:
            stream.push(frames[0])
        cache_bytes, schedule = stream.nbytes, stream.schedule
    size = pipeline.working_size(*CAMERA, settings.get("size", pipeline.config.size))
    stock, indices = FrameByFrame(pipeline, schedule.steps, size), iter(range(10**9))
    with (
        closing(Viewers(pipeline, 1, settings, frames)) as viewer,
        closing(Viewers(pipeline, 1, settings, frames)) as plain,
    ):
        calls = {
            "stream": viewer.push,
            "img2img": lambda: stock.push(frames[next(indices) % len(frames)]),
        }
        if pipeline.runtime is not None:
            calls["eager"] = eagerly(pipeline, plain.push)
        seconds = interleave(calls, rounds, device)
        with stage_clock(pipeline) as stages:
            for _ in range(rounds):
                viewer.push()
    unet = interleave(unet_calls(pipeline, schedule, size), rounds, device)
    cached, recomputed = (milliseconds(unet[name]) for name in ("cached", "recomputed"))
    whole = {name: milliseconds(taken) for name, taken in seconds.items()}
    ours = whole.pop("stream")
    beside = {
        name: {"frame": theirs, "ratio": round(theirs["p50_ms"] / ours["p50_ms"], 2)}
        for name, theirs in whole.items()
    }
    return {
        "working_size": list(size),
        "steps": schedule.steps,
        "frame": ours,
        "fps": round(1000 / ours["p50_ms"], 2),
        "stages": {stage: milliseconds(taken) for stage, taken in stages.items()},
        "cache_bytes_a_stream": cache_bytes,
        "first_frame": milliseconds(first_frame(pipeline, settings, frames, min(rounds, 5))),
        "prompt_change": milliseconds(prompt_change(pipeline, settings, rounds)),
        "without_cache": {
            "unet_cached": cached,
            "unet_recomputed": recomputed,
            "ratio": round(recomputed["p50_ms"] / cached["p50_ms"], 2),
        },
        **beside,
    }


def measure_filter(pipeline: Live2DiffPipeline, frame_ms: float, size: list[int], rounds: int) -> Record:
    """What the safety checker takes for a picture, beside a whole frame without it."""
    device = pipeline.unet.device
    content_filter = random_filter(device, pipeline.unet.dtype)
    picture = torch.rand(1, 3, *size, device=device, dtype=pipeline.unet.dtype) * 2 - 1
    taken = milliseconds(interleave({"filter": lambda: content_filter(picture)}, rounds, device)["filter"])
    return {"picture": taken, "ratio": round(taken["p50_ms"] / frame_ms, 2)}


def measure_together(pipeline: Live2DiffPipeline, count: int, settings: Settings, rounds: int) -> Record:
    """`count` viewers at once beside a single one: frames a second of all, and how many times the single
    one's that is."""
    frames = camera(*CAMERA)
    with (
        closing(Viewers(pipeline, count, settings, frames)) as many,
        closing(Viewers(pipeline, 1, settings, frames)) as one,
    ):
        taken = interleave({"many": many.push, "one": one.push}, rounds, pipeline.unet.device)
    many_ms, one_ms = (milliseconds(taken[name]) for name in ("many", "one"))
    return {
        "streams": count,
        "fps": round(count * 1000 / many_ms["p50_ms"], 2),
        "round": many_ms,
        "times_one": round(count * one_ms["p50_ms"] / many_ms["p50_ms"], 2),
    }


def measure_all(
    pipeline: Live2DiffPipeline, counts: list[int], settings: Settings, rounds: int
) -> Iterator[Record]:
    """`measure_together` for each of these counts, as far as the device's memory goes."""
    for count in counts:
        try:
            tell(f"{count} viewers at once")
            yield measure_together(pipeline, count, settings, rounds)
        except torch.OutOfMemoryError:
            print(f"live2diff: there is no memory for {count} viewers at once", file=sys.stderr)
            return


def measure_long(pipeline: Live2DiffPipeline, first: int, last: int, settings: Settings) -> Record:
    """What frame `last` of a stream costs beside frame `first`: two streams take turns around them, so the
    machine is the same for both."""
    around = min(first - WARMUP_FRAMES, last - first) // 2
    frames = camera(*CAMERA)
    with (
        closing(Viewers(pipeline, 1, settings, frames)) as early,
        closing(Viewers(pipeline, 1, settings, frames)) as late,
    ):
        early.push_until(first - around)
        late.push_until(last - around)
        taken = interleave({"early": early.push, "late": late.push}, 2 * around, pipeline.unet.device)
    early_ms, late_ms = (milliseconds(taken[name]) for name in ("early", "late"))
    ratio = round(late_ms["p50_ms"] / early_ms["p50_ms"], 3)
    return {"frames": [first, last], "early": early_ms, "late": late_ms, "ratio": ratio}


def tell(what: str) -> None:
    """What is being measured: all in all it takes minutes."""
    print(f"Measuring {what}", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints; every bad value is a ValueError or an OSError with a message for a person."""
    check(arguments)
    pipeline, weights = open_model(arguments.model, arguments.device, arguments.eager)
    if arguments.compiled:
        pipeline.runtime = CudaRuntime(pipeline, compiled=True)
    device = pipeline.unet.device
    settings = told_settings(arguments)
    tell("one viewer, and what it is compared with")
    record: Record = {
        "device": device_name(device),
        "kind": device.type,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "model": arguments.model,
        "weights": weights,
        "runtime": "eager" if pipeline.runtime is None else type(pipeline.runtime).__name__,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "camera": list(CAMERA),
        "measured_frames": arguments.frames,
        "one": measure_one(pipeline, settings, arguments),
        "together": list(measure_all(pipeline, arguments.streams, settings, arguments.frames)),
    }
    if arguments.safety_checker:
        tell("the safety checker")
        one = record["one"]
        one["safety_checker"] = measure_filter(
            pipeline, one["frame"]["p50_ms"], one["working_size"], arguments.frames
        )
    if arguments.long is not None:
        tell(f"frame {arguments.long} beside frame {EARLY}")
        record["long"] = measure_long(pipeline, EARLY, arguments.long, settings)
    record["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    print(*lines(record), sep="\n")
    print(json.dumps(record))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all was measured, 2 for bad input, 130 when interrupted."""
    try:
        run(parser().parse_args(words))
    except (ValueError, OSError) as error:
        print("live2diff: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nlive2diff: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
