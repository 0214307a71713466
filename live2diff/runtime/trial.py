"""Choose the fastest way to compute frames on a CUDA GPU that gives correct frames there."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from subprocess import SubprocessError

import numpy as np
import torch
from torch import nn

from ..config import WARMUP_FRAMES
from ..errors import is_out_of_memory
from ..pipeline import Live2DiffPipeline
from ..streaming.cache_pool import CachePools
from ..streaming.steps import push_together, unwrap
from .cuda_graphs import CudaRuntime, Way
from .device import release_memory
from .float8 import has_float8

CAMERA = (480, 640)  # height, width of the frames of a trial
ROUNDS = 4  # for one viewer, and then for all
WAYS = {  # the fastest first, and the beginning of the message if it fails
    Way(attention=True, fused=True): "The kernels for group norms and the like do",
    Way(attention=True): "The attention kernel does",
    Way(): "CUDA graphs do",
}
LARGEST_DIFFERENCE = 2.0  # from eager code in float32, in grey levels on average


@dataclass(frozen=True)
class Trial:
    """A trial that translates short clips of noise in one way after the other.

    Args:
        pipeline: the model.
        frame: (height, width) of the frames.
        size: working size, None for the model's default.
        viewers: number of viewers.
        dtype: precision of the reference frames.
        clock: returns seconds.
    """

    pipeline: Live2DiffPipeline
    frame: tuple[int, int] = CAMERA
    size: int | None = None
    viewers: int = 2
    dtype: torch.dtype = torch.float32
    clock: Callable[[], float] = time.perf_counter

    def smaller(self) -> Iterator["Trial"]:
        """Yield this trial, then trials that need less memory."""
        short = short_trial(self.pipeline)
        yield from (self, replace(short, dtype=self.dtype), short)

    def run(self) -> tuple[np.ndarray, float]:
        """Translate for one viewer, then for all together, with a full-precision cache and an 8-bit one.

        Returns:
            The frames as float32, and the seconds of the last round of each, in total.
        """
        shape = (WARMUP_FRAMES + 2 * ROUNDS, *self.frame, 3)
        clip, seconds = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), 0.0
        shown: list[np.ndarray] = []
        for cache_dtype in (None, torch.int8):
            settings = {"size": self.size, "pools": CachePools(self.viewers), "cache_dtype": cache_dtype}
            with ExitStack() as stack:
                streams = [self.pipeline.stream(seed=seed, **settings) for seed in range(self.viewers)]
                for stream in streams:
                    stack.callback(stream.close)
                    for frame in clip[:WARMUP_FRAMES]:
                        shown += stream.push(frame)
                for number, frame in enumerate(clip[WARMUP_FRAMES:], 1):
                    together, began = streams[: 1 if number <= ROUNDS else None], self.clock()
                    results = push_together([stream.receive(frame) for stream in together])
                    seconds += (self.clock() - began) * (number % ROUNDS == 0)
                    shown += [image for result in results for image in unwrap(result)]
        return np.stack(shown).astype(np.float32), seconds

    def reference(self) -> np.ndarray:
        """Return the frames of eager code, to compare with."""
        with precision(self.pipeline, self.dtype):
            return self.run()[0]

    def attempt(self, way: Way, expected: np.ndarray) -> tuple[CudaRuntime | None, float, str]:
        """Translate in one way; return its runtime or None, the seconds of `run`, and what went wrong.

        Raises:
            RuntimeError: out of memory.
        """
        try:
            self.pipeline.runtime = runtime = CudaRuntime(self.pipeline, way)
            frames, seconds = self.run()
            difference = np.abs(frames - expected).mean()
            runtime.forget()  # the next attempt needs the memory of the graphs
        except kernel_errors() as error:  # from CUDA, a compiler, or a stream of nothing but NaN
            if is_out_of_memory(error):
                raise
            return None, 0.0, " ".join(str(error).split())
        finally:
            self.pipeline.runtime = None
        if not difference <= LARGEST_DIFFERENCE:
            return None, 0.0, f"the images differ by {difference:.1f} grey levels"
        return runtime, seconds, ""

    def choose(self, compiled: bool, report: Callable[[str], None]) -> CudaRuntime | None:
        """Return the fastest runtime that gives correct frames; `report` what does not.

        Raises:
            RuntimeError: out of memory.
        """
        has_triton, expected = find_spec("triton") is not None, self.reference()
        chosen, seconds, way = None, 0.0, Way()
        for way, what in WAYS.items() if has_triton else [(Way(), WAYS[Way()])]:
            chosen, seconds, problem = self.attempt(way, expected)
            if chosen is not None:
                break
            report(f"{what} not work here; continuing without, more slowly: {problem}")
        if chosen is None or not (compiled and has_triton):
            return chosen
        report("Compiling the model's blocks for this GPU: some minutes the first time")
        more = {"compiled": "Compiled blocks do"}
        if has_float8(self.pipeline.unet.device):
            more["float8"] = "8-bit floats do"
        for option, what in more.items():
            other, its_seconds, problem = self.attempt(replace(way, **{option: True}), expected)
            if problem:
                report(f"{what} not work here; continuing without: {problem}")
            if other is not None and its_seconds < seconds:
                chosen, seconds, way = other, its_seconds, other.way
        return chosen


def short_trial(pipeline: Live2DiffPipeline) -> Trial:
    """Return a trial for one viewer at the smallest size, compared with eager code in the same precision."""
    return Trial(pipeline, size=2 * pipeline.size_multiple, viewers=1, dtype=pipeline.unet.dtype)


def accelerate(
    pipeline: Live2DiffPipeline,
    compiled: bool = False,
    report: Callable[[str], None] = lambda line: None,
    trial: Trial | None = None,
) -> None:
    """Add the fastest runtime that works to a pipeline on a GPU; `report` what does not work.

    Frames must differ from eager code in float32 by at most 2 grey levels on average. CUDA graphs are tried
    with all kernels, else with that of the attention, else with none; then, if `compiled`, with compiled
    blocks and with feed-forwards in 8-bit floats, each of which is kept if it is faster.
    """
    pipeline.runtime, problem = None, ""
    for smaller in (trial or Trial(pipeline)).smaller():
        try:
            pipeline.runtime = smaller.choose(compiled, report)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)
        release_memory()
    report(f"There is no memory for CUDA graphs; continuing without, more slowly: {problem}")


@contextmanager
def precision(pipeline: Live2DiffPipeline, dtype: torch.dtype) -> Iterator[None]:
    """Convert the networks to another precision inside the block."""
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.depth_estimator)
    own = pipeline.unet.dtype
    try:
        for part in parts:
            nn.Module.to(part, dtype)
        yield
    finally:
        for part in parts:
            nn.Module.to(part, own)


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the errors that CUDA and the compilers called by Triton may raise."""
    errors: tuple[type[Exception], ...] = (RuntimeError, OSError, SubprocessError)
    if find_spec("triton"):
        import triton

        errors += (triton.TritonError,)
    return errors
