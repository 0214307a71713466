"""The stages of the check; each takes a `Check` and returns its result."""

import platform
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ..benchmark.measure import camera, first_frame, interleave, milliseconds, stage_clock, viewers
from ..config import WARMUP_FRAMES
from ..errors import is_out_of_memory
from ..pipeline import Live2DiffPipeline
from ..runtime.cuda_graphs import CudaRuntime
from ..runtime.device import find_card, release_memory, run_tiny_product
from ..runtime.float8 import has_float8
from ..runtime.trial import accelerate
from ..serving.engine import Engine
from ..streaming.cache_pool import CachePools
from ..streaming.settings import StreamSettings
from ..streaming.steps import push_together, unwrap

Result = dict[str, Any]
CLIP_FRAMES = 14
TOP_KERNELS = 25
PATIENCE = 120.0  # seconds for a frame


class Skipped(RuntimeError):
    """This stage or part is impossible here; the message says why."""


@dataclass
class Check:
    """The device, the models to check on it, and the amount of work."""

    device: torch.device
    build_tiny: Callable[[str], Live2DiffPipeline]  # on a device, in float32, without a runtime
    build_full: Callable[[str], Live2DiffPipeline]  # in the published layout
    sizes: tuple[int, ...] = (384, 512)
    steps: tuple[int, ...] = (1, 2, 3)
    viewers: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 30  # frames that are timed
    side: int = 8192  # of the matrices that are multiplied
    camera: tuple[int, int] = (480, 640)
    deadline: float = float("inf")  # of the current stage, on the monotonic clock

    def __post_init__(self) -> None:
        """Make frames of a moving scene, and the settings of most stages; `full` is built when needed."""
        self.is_gpu, self.frames = self.device.type == "cuda", camera(*self.camera)
        self.settings = StreamSettings(size=self.sizes[-1], steps=min(2, self.steps[-1]), seed=1)

    @cached_property
    def full(self) -> Live2DiffPipeline:
        """The full model."""
        return self.build_full(str(self.device))

    def clip(self, pipe: Live2DiffPipeline, **changes: Any) -> np.ndarray:
        """Return the frames of a short clip, int16 `[frames, height, width, 3]`."""
        with closing(pipe.stream(self.settings, **changes)) as stream:
            frames = [out for frame in self.frames[:CLIP_FRAMES] for out in stream.push(frame)]
        return np.stack(frames).astype(np.int16)

    def laps(self, call: Callable[[], Any], rounds: int | None = None) -> list[float]:
        """Return the seconds of each call, after some untimed ones."""
        return interleave({"": call}, rounds or self.rounds, self.device)[""]

    def need_gpu(self) -> None:
        """Skip what needs CUDA: graphs, or the count of allocated bytes."""
        if not self.is_gpu:
            raise Skipped(f"on a CUDA GPU only; this is {self.device.type}")

    @contextmanager
    def mode(self, pipe: Live2DiffPipeline, mode: str) -> Iterator[None]:
        """Run a pipeline "eager", with "graphs", "compiled" or in "float8" inside the block."""
        if mode != "eager":
            self.need_gpu()
            reasons = [f"no {mode}:"]
            accelerate(pipe, report=reasons.append)
            if pipe.runtime is None:
                raise RuntimeError(" ".join(reasons))
            if mode != "graphs":  # even if it is slower
                assert isinstance(pipe.runtime, CudaRuntime)
                if mode == "float8" and not has_float8(self.device):
                    raise Skipped("this GPU does not multiply 8-bit floats")
                pipe.runtime = CudaRuntime(pipe, replace(pipe.runtime.way, **{mode: True}))
        try:
            yield
        finally:
            pipe.runtime = None


def attempt(part: Callable[[], Result]) -> Result:
    """Return the result of a stage or a part of one with `ok`; else the reason as `skipped` or `error`."""
    try:
        result = {"ok": True} | part()
    except Skipped as reason:
        result = {"skipped": str(reason)}
    except Exception as error:  # the report has the error of each part
        result = {"ok": False, "error": f"{type(error).__name__}: {error}"[:1000]}
    release_memory()
    return result


def attempt_all(parts: dict[str, Callable[[], Result]]) -> Result:
    """Run all parts of a stage, even if some fail."""
    results = {name: attempt(part) for name, part in parts.items()}
    return {"ok": all(result.get("ok", True) for result in results.values())} | results


def compare(mine: np.ndarray, other: np.ndarray, most: float) -> Result:
    """Compare frames, which may differ by `most` grey levels on average."""
    difference = np.abs(mine - other)
    mean = float(difference.mean())
    return {"ok": mean <= most, "mean": mean, "max": int(difference.max())}


def versions() -> Result:
    """Return versions, card and architectures, as far as they are known without a GPU."""
    found = {"python": sys.version.split()[0], "system": platform.platform(), "torch": torch.__version__}
    return found | {"cuda": torch.version.cuda, "card": find_card(), "arch": torch.cuda.get_arch_list()}


def environment(check: Check) -> Result:
    """Describe card, driver and torch; measure the rates of a matrix product and of a copy."""
    run_tiny_product(check.device)
    dtype = torch.float16 if check.is_gpu else torch.float32
    matrix = torch.randn(check.side, check.side, dtype=dtype, device=check.device)
    product, copy = (min(check.laps(call, 10)) for call in (lambda: matrix @ matrix, matrix.clone))
    rates = {"tflops": 2 * check.side**3 / product / 1e12, "copy_tb_s": 2 * matrix.nbytes / copy / 1e12}
    memory = torch.cuda.mem_get_info(check.device) if check.is_gpu else None
    return versions() | rates | {"memory_free_total": memory}


def tiny(check: Check) -> Result:
    """Compare a small model on the CPU, here eagerly, with graphs and compiled, in full precision."""
    expected, pipe = check.clip(check.build_tiny("cpu")), check.build_tiny(str(check.device))

    def part(mode: str) -> Result:
        with check.mode(pipe, mode), torch.backends.cudnn.flags(allow_tf32=False):
            return compare(check.clip(pipe), expected, 0.05)

    return attempt_all({mode: lambda mode=mode: part(mode) for mode in ("eager", "graphs", "compiled")})


def synchronisations(check: Check) -> Result:
    """Count the places where a warm stream waits for the GPU: one a frame, the download, is allowed."""
    frames = check.frames[WARMUP_FRAMES:]
    with closing(check.full.stream(check.settings)) as stream, warnings.catch_warnings(record=True) as seen:
        for frame in check.frames[:WARMUP_FRAMES]:
            stream.push(frame)
        warnings.simplefilter("always")
        mode = torch.cuda.set_sync_debug_mode if check.is_gpu else lambda _: None
        mode("warn")
        try:
            for frame in frames:
                stream.push(frame)
        finally:
            mode("default")
    places = Counter(f"{w.filename}:{w.lineno}" for w in seen if "synchronizing" in str(w.message))
    per_frame = sum(places.values()) / len(frames)
    return {"ok": per_frame <= 1, "per_frame": per_frame, "places": dict(places.most_common(10))}


def full(check: Check) -> Result:
    """Compare the full model with itself: precisions, graphs, viewers, 8-bit caches, new weights."""
    pipe = check.full
    expected = check.clip(pipe)

    def part(mode: str = "eager", most: float = 0.0, **changes: Any) -> Result:
        with check.mode(pipe, mode):
            return compare(check.clip(pipe, **changes), expected, most)

    def precision() -> Result:
        dtype = pipe.unet.dtype
        try:
            return compare(check.clip(pipe.to(torch.float32)), expected, 1.0)
        finally:
            pipe.to(dtype)

    def restyle() -> Result:
        with check.mode(pipe, "graphs"):
            check.clip(pipe)
            pipe.unet.conv_in.weight.data.mul_(2)  # in place, as for a style; exact and reversible
            try:
                replayed, pipe.runtime = check.clip(pipe), None
                return compare(replayed, check.clip(pipe), 0) | {"changed": compare(replayed, expected, 0)}
            finally:
                pipe.unet.conv_in.weight.data.div_(2)

    parts = {"float32": precision, "graphs": lambda: part("graphs"), "restyle": restyle}
    parts |= {"compiled": lambda: part("compiled", 0.5), "int8": lambda: part(most=2, cache_dtype=torch.int8)}
    parts |= {
        "float8": lambda: part("float8", 2),
        "fp8": lambda: part(most=2, cache_dtype=torch.float8_e4m3fn),
    }
    parts |= {f"{n} viewers": lambda n=n: together(check, n, expected) for n in check.viewers[1:]}
    return attempt_all(parts)


def together(check: Check, count: int, alone: np.ndarray) -> Result:
    """Compare the first of several viewers in one batch with the same viewer alone."""
    pools, shown = CachePools(count), []
    streams = [check.full.stream(check.settings, seed=1 + number, pools=pools) for number in range(count)]
    for frame in check.frames[:CLIP_FRAMES]:
        pending = [stream.receive(frame) for stream in streams]
        batches = [pending] if streams[0].warm else [[each] for each in pending]
        results = [unwrap(result) for batch in batches for result in push_together(batch)]
        shown += results[0]
    return compare(np.stack(shown).astype(np.int16), alone, 0.5)


def speed(check: Check) -> Result:
    """Time the parts of a frame, frames while viewers join, and frames by mode, size, steps and viewers."""
    pipe, rows = check.full, []

    def timed(mode: str) -> Result:
        with check.mode(pipe, mode):
            for size, steps, count in product(check.sizes, check.steps, check.viewers):
                if time.monotonic() > check.deadline:
                    return {"cut": "the time was over"}
                settings = StreamSettings(size=size, steps=steps)
                with viewers(pipe, count, settings, check.frames) as push:
                    times = check.laps(push)
                row = {"mode": mode, "size": size, "steps": steps, "viewers": count}
                rows.append(row | milliseconds(times) | {"fps": round(count / median(times), 1)})
        return {}

    def parts() -> Result:
        first = milliseconds(first_frame(pipe, check.settings, check.frames, rounds=2))
        with viewers(pipe, 1, check.settings, check.frames) as push, stage_clock(pipe) as stages:
            check.laps(push)
        return {"first frame": first} | {name: milliseconds(times) for name, times in stages.items() if times}

    def joining() -> Result:
        engine, times = Engine(pipe, capacity=check.viewers[-1], idle_seconds=3600.0), []
        try:
            for number in range(check.viewers[-1]):
                engine.open(str(number), check.settings).result(PATIENCE)
                for frame in check.frames[: WARMUP_FRAMES + 4]:
                    began = time.perf_counter()
                    results = [engine.push(str(viewer), frame) for viewer in range(number + 1)]
                    results[0].result(PATIENCE)
                    times += [time.perf_counter() - began] * bool(number)
                    results[-1].result(PATIENCE)
        finally:
            engine.shutdown()
        return milliseconds(times) | {"p99_ms": float(np.quantile(times, 0.99) * 1000)}

    modes = {mode: lambda mode=mode: timed(mode) for mode in ("graphs", "eager", "compiled", "float8")}
    others = {"parts": parts, "joining": joining, "live": lambda: live(check)}
    return attempt_all(others | modes) | {"rows": rows}


def live(check: Check) -> Result:
    """Measure the frame rate of one viewer who always has two frames in the engine."""
    engine, sent = Engine(check.full, capacity=1, idle_seconds=3600.0, together=True), deque()
    try:
        engine.open("", check.settings).result(PATIENCE)
        for frame in check.frames[: WARMUP_FRAMES + 4]:
            engine.push("", frame).result(PATIENCE)
        began = time.perf_counter()
        for number in range(check.rounds):
            sent.append(engine.push("", check.frames[number % len(check.frames)]))
            if len(sent) == 2:
                sent.popleft().result(PATIENCE)
        sent.pop().result(PATIENCE)
        return {"fps": round(check.rounds / (time.perf_counter() - began), 1)}
    finally:
        engine.shutdown()


def kernels(check: Check) -> Result:
    """Profile three frames: the longest operations with their rates of arithmetic and, at least, reading."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.is_gpu else [])]
    with closing(check.full.stream(check.settings)) as stream:
        for frame in check.frames[: WARMUP_FRAMES + 2]:
            stream.push(frame)
        with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
            for frame in check.frames[:3]:
                stream.push(frame)
    kind, rows = "self_device_time_total" if check.is_gpu else "self_cpu_time_total", []
    events = profiler.key_averages(group_by_input_shape=True)
    for event in sorted(events, key=lambda event: getattr(event, kind), reverse=True)[:TOP_KERNELS]:
        seconds = max(getattr(event, kind) / 1e6, 1e-9)
        shapes = [shape for shape in event.input_shapes if shape and all(isinstance(n, int) for n in shape)]
        read = event.count * check.full.unet.dtype.itemsize * sum(int(np.prod(shape)) for shape in shapes)
        rates = {"tflops": event.flops / seconds / 1e12, "tb_s": read / seconds / 1e12}
        rows.append(
            {"name": event.key, "calls": event.count, "ms": seconds * 1000, "shapes": shapes[:3]} | rates
        )
    return {"frames": 3, "rows": rows}


@contextmanager
def full_device(check: Check) -> Iterator[None]:
    """Fill the device's memory inside the block; without CUDA, have the UNet raise instead."""

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("refused by the check")

    release_memory()
    if check.is_gpu:
        free = torch.cuda.mem_get_info()[0] - 2**24
        hogs = [torch.empty(free, dtype=torch.uint8, device=check.device)]
        try:
            yield
        finally:
            hogs.clear()
        return
    hook = check.full.unet.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def memory(check: Check) -> Result:
    """Measure the memory of a viewer and of graphs; run out of it at several moments and stream again."""
    pipe, expected = check.full, check.clip(check.full)

    def taken() -> Result:
        check.need_gpu()
        torch.cuda.reset_peak_memory_stats()
        weights, _ = torch.cuda.memory_allocated(), check.clip(pipe)
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        with check.mode(pipe, "graphs"):
            check.clip(pipe)
            return {"weights": weights, "peak": peak, "graphs": torch.cuda.memory_reserved() - reserved}

    def exhausted(frames_before: int) -> Result:
        message, recognised = "memory did not run out", False
        with closing(pipe.stream(check.settings)) as stream:
            for frame in check.frames[:frames_before]:
                stream.push(frame)
            with full_device(check):
                try:
                    for frame in check.frames[:WARMUP_FRAMES]:
                        stream.push(frame)
                except RuntimeError as error:
                    recognised = is_out_of_memory(error)
                    message = str(error) if recognised else f"not recognised as out of memory: {error}"
        result = compare(check.clip(pipe), expected, 0.5)
        return result | {"ok": result["ok"] and recognised, "message": message}

    def captured() -> Result:
        with full_device(check), suppress(RuntimeError), check.mode(pipe, "graphs"):
            pass
        return compare(check.clip(pipe), expected, 0.5)

    moments = {"warmup": lambda: exhausted(0), "stream": lambda: exhausted(WARMUP_FRAMES + 2)}
    return attempt_all({"taken": taken, "capture": captured} | moments)


def soak(check: Check) -> Result:
    """Stream until the deadline: neither memory nor the time of a frame may grow."""
    times, held = [], []
    with closing(check.full.stream(check.settings)) as stream:
        while time.monotonic() < check.deadline or len(times) < 2 * WARMUP_FRAMES:
            frame, began = check.frames[len(times) % len(check.frames)], time.perf_counter()
            stream.push(frame)
            times.append(time.perf_counter() - began)
            held.append(torch.cuda.memory_allocated() if check.is_gpu else 0)
    tenth = max(1, len(times) // 10)
    slower = median(times[-tenth:]) / median(times[WARMUP_FRAMES:][:tenth])
    grown = held[-1] - held[WARMUP_FRAMES]
    # A CPU is shared with other work; a GPU that slows down by a quarter is too hot.
    ok = grown <= 0 and (slower < 1.25 or not check.is_gpu)
    return {"ok": ok, "frames": len(times), "times_slower": slower, "bytes_grown": grown}


STAGES: dict[str, tuple[Callable[[Check], Result], float]] = {  # with their shares of the time
    "env": (environment, 0.03),
    "tiny": (tiny, 0.15),
    "sync": (synchronisations, 0.05),
    "full": (full, 0.22),
    "speed": (speed, 0.33),
    "kernels": (kernels, 0.04),
    "memory": (memory, 0.08),
    "soak": (soak, 0.1),
}
