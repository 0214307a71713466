"""Measure how fast a model streams, beside alternatives; JSON is the last line."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import diffusers
import torch

from ..cli import t_index_list_of
from ..command import run_main
from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from ..runtime.cuda_graphs import CudaRuntime, Way
from ..streaming.settings import StreamSettings
from .command import Record, add_options, check_options, settings_of, write_record
from .measure import (
    camera,
    first_frame,
    interleave,
    milliseconds,
    prompt_change,
    stage_clock,
    times_as_long,
    viewers,
)
from .models import open_model, random_filter
from .report import lines
from .rivals import frame_by_frame, unet_calls

CAMERA = (480, 640)
FEWEST_ROUNDS = 2
EARLY = 200  # the frame that a late one is compared with
report = partial(print, file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.benchmark", description=__doc__)
    add = parser.add_argument
    add("--model", default="nano", help="nano, live2diff (random weights if it is not here) or a folder")
    add_options(parser)
    add("--eager", action="store_true", help="run on PyTorch's own kernels, without a runtime")
    add("--compiled", action="store_true", help="on a GPU: compile as well, not only capture graphs")
    add("--frames", type=int, default=32, metavar="N", help="frames of each measurement (%(default)s)")
    add("--streams", type=t_index_list_of, default=[1, 2, 4, 8], metavar="1,2,4,8", help="viewers at once")
    add("--long", type=int, metavar="N", help=f"compare the cost of frame N with that of frame {EARLY}")
    checker = "measure it too, with random weights in its real size"
    add("--safety-checker", action="store_true", help=checker)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise `ValueError` for bad options, before the model is loaded."""
    check_options(arguments)
    if min(arguments.streams) < 1:
        raise ValueError("--streams must be numbers of viewers like 1,2,4,8.")
    if arguments.frames < FEWEST_ROUNDS:
        raise ValueError(f"--frames {arguments.frames} is too few: at least {FEWEST_ROUNDS} are needed.")
    if arguments.long is not None and arguments.long <= EARLY:
        raise ValueError(f"--long {arguments.long} is too few: it is compared with frame {EARLY}.")
    if arguments.compiled and (arguments.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--compiled is for a CUDA device; leave it out.")


def device_name(device: torch.device) -> str:
    """Name the card, or the processor and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        name = Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].strip("\t: ")
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores seen, {torch.get_num_threads()} threads"


def measure_one(pipeline: Live2DiffPipeline, settings: StreamSettings, rounds: int) -> Record:
    """Measure one viewer: stages, rivals, first frame, change of prompt.

    Only one stream is open at a time: two caches of the full model do not fit on a GPU of 12 GB.
    """
    device, frames = pipeline.unet.device, camera(*CAMERA)
    with closing(pipeline.stream(settings)) as stream:
        while not stream.warm:
            stream.push(frames[0])
        cache_bytes, schedule = stream.nbytes, stream.schedule
    size = pipeline.working_size(*CAMERA, settings.size)
    stock = frame_by_frame(pipeline, schedule.steps, size)
    with viewers(pipeline, 1, settings, frames) as push:
        calls = {"stream": push, "img2img": partial(stock, frames[0])}
        if pipeline.runtime is not None:
            calls["eager"] = patch.object(pipeline, "runtime", None)(push)
        seconds = interleave(calls, rounds, device)
        with stage_clock(pipeline) as stages:
            for _ in range(rounds):
                push()
    whole = {name: milliseconds(taken) for name, taken in seconds.items()}
    unet = interleave(unet_calls(pipeline, schedule, size), rounds, device)
    cached, recomputed = (milliseconds(unet[name]) for name in ("cached", "recomputed"))
    frame = whole.pop("stream")
    return {
        "working_size": list(size),
        "steps": schedule.steps,
        "frame": frame,
        "fps": round(1000 / frame["p50_ms"], 2),
        "stages": {stage: milliseconds(taken) for stage, taken in stages.items()},
        "cache_bytes_a_stream": cache_bytes,
        "first_frame": milliseconds(first_frame(pipeline, settings, frames, min(rounds, 5))),
        "prompt_change": milliseconds(prompt_change(pipeline, settings, rounds)),
        "without_cache": {
            "unet_cached": cached,
            "unet_recomputed": recomputed,
            "ratio": times_as_long(recomputed, cached),
        },
        **{name: {"frame": taken, "ratio": times_as_long(taken, frame)} for name, taken in whole.items()},
    }


def measure_filter(pipeline: Live2DiffPipeline, frame: dict, size: list[int], rounds: int) -> Record:
    """Measure the safety checker on an image; `frame` is the time of a whole frame without it."""
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    content_filter = random_filter(device, dtype)
    image = torch.rand(1, 3, *size, device=device, dtype=dtype) * 2 - 1
    taken = milliseconds(interleave({"filter": lambda: content_filter(image)}, rounds, device)["filter"])
    return {"picture": taken, "ratio": times_as_long(taken, frame)}


def measure_together(
    pipeline: Live2DiffPipeline, counts: list[int], settings: StreamSettings, rounds: int
) -> Iterator[Record]:
    """Measure these numbers of viewers at once, and one beside them, until memory runs out."""
    for count in counts:
        report(f"Measuring {count} viewers at once")
        try:
            with viewers(pipeline, count, settings, camera(*CAMERA)) as push:
                calls = {"all": push, "one": partial(push, 1)}
                taken = interleave(calls, rounds, pipeline.unet.device)
        except torch.OutOfMemoryError:
            report(f"There is not enough memory for {count} viewers at once.")
            return
        all_ms, one_ms = (milliseconds(taken[name]) for name in ("all", "one"))
        yield {
            "streams": count,
            "fps": round(count * 1000 / all_ms["p50_ms"], 2),
            "round": all_ms,
            "times_one": round(count * one_ms["p50_ms"] / all_ms["p50_ms"], 2),
        }


def measure_long(pipeline: Live2DiffPipeline, first: int, last: int, settings: StreamSettings) -> Record:
    """Compare a stream around frame `last` with one around frame `first`, by turns."""
    around = min(first - WARMUP_FRAMES, last - first) // 2
    frames = camera(*CAMERA)
    with viewers(pipeline, 1, settings, frames) as early, viewers(pipeline, 1, settings, frames) as late:
        for push, number in ((early, first), (late, last)):
            for _ in range(number - around - WARMUP_FRAMES):
                push()
        taken = interleave({"early": early, "late": late}, 2 * around, pipeline.unet.device)
    early_ms, late_ms = (milliseconds(taken[name]) for name in ("early", "late"))
    ratio = round(late_ms["p50_ms"] / early_ms["p50_ms"], 3)
    return {"frames": [first, last], "early": early_ms, "late": late_ms, "ratio": ratio}


def measure_all(arguments: argparse.Namespace) -> Record:
    """Load the model and run the measurements of the options."""
    pipeline, weights = open_model(arguments.model, arguments.device, arguments.eager)
    if arguments.compiled:
        way = pipeline.runtime.way if isinstance(pipeline.runtime, CudaRuntime) else Way()
        pipeline.runtime = CudaRuntime(pipeline, replace(way, compiled=True))
    device, settings, rounds = pipeline.unet.device, settings_of(arguments), arguments.frames
    report("Measuring one viewer and its rivals")
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
        "measured_frames": rounds,
        "one": measure_one(pipeline, settings, rounds),
        "together": list(measure_together(pipeline, arguments.streams, settings, rounds)),
    }
    if arguments.safety_checker:
        report("Measuring the safety checker")
        one = record["one"]
        one["safety_checker"] = measure_filter(pipeline, one["frame"], one["working_size"], rounds)
    if arguments.long is not None:
        report(f"Measuring frame {arguments.long} beside frame {EARLY}")
        record["long"] = measure_long(pipeline, EARLY, arguments.long, settings)
    record["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return record


def run(arguments: argparse.Namespace) -> None:
    """Measure and print; raise `ValueError` or `OSError` for bad input and too little memory."""
    check(arguments)
    try:
        record = measure_all(arguments)
    except torch.OutOfMemoryError:
        raise ValueError("There is not enough memory. Try a smaller --size or fewer --steps.") from None
    print(*lines(record), sep="\n")
    write_record(record, arguments.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when all was measured, 2 for bad input, 130 when interrupted."""
    return run_main(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
