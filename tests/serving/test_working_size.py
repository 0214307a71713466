"""The work of a frame is the most for which the machine has the speed and the memory."""

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers.full_memory import Full
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from live2diff import Live2DiffPipeline
from live2diff.benchmark.models import random_model
from live2diff.loading import GPU_BYTES
from live2diff.model.attention import Window
from live2diff.model.depth import inverse_depth
from live2diff.model.vae import decode, encode
from live2diff.runtime import device
from live2diff.serving import engine as engine_module
from live2diff.serving import working_size
from live2diff.serving.capacity import Room, bytes_of_cache
from live2diff.serving.working_size import (
    LADDERS,
    Ladder,
    Work,
    choices,
    ladder_of,
    measure,
    set_work,
    start_fitting,
)
from live2diff.styles import Style

SIZES = (16, 20, 24, 28)  # a sixteenth of nano's, for the tiny model
GB = 10**9


@pytest.fixture
def pipe(tiny_pipeline, monkeypatch) -> Iterator[Live2DiffPipeline]:
    """A model whose own size is the smallest, and which has one step, like nano."""
    before = {name: tiny_pipeline.config[name] for name in ("size", "t_index_list")}
    monkeypatch.setattr(working_size, "LADDERS", {16: Ladder(SIZES, None, 16.0, 1.25)})
    monkeypatch.setattr(tiny_pipeline, "styles", tiny_pipeline.styles)
    monkeypatch.setattr(tiny_pipeline, "about", "Model: tiny.")
    tiny_pipeline.register_to_config(size=SIZES[0], t_index_list=[30])
    yield tiny_pipeline
    tiny_pipeline.register_to_config(**before)


@pytest.fixture
def full(pipe, monkeypatch) -> Live2DiffPipeline:
    """The same with sizes and steps to choose, like the full model, on a GPU with much memory."""
    monkeypatch.setattr(working_size, "LADDERS", {16: Ladder((16, 20, 24), (1, 2, 3), 15.0, 2.0)})
    monkeypatch.setattr(device, "free_bytes", lambda _: 10**12)
    pipe.register_to_config(t_index_list=[30, 36, 42])
    return pipe


class Machine:
    """A clock that makes a frame take the seconds of its work; notes what is measured."""

    def __init__(self, pipe, monkeypatch, seconds: Callable[[Work], float]):
        self.seconds, self.now = seconds, 0.0
        self.measured: list[Work] = []
        open_stream = pipe.stream

        def stream(*settings, size=None, steps=None, cache_dtype=None, **more):
            if size is not None:
                self.measured.append(Work(size, steps, cache_dtype))
                more |= {"size": size, "steps": steps}
            return open_stream(*settings, cache_dtype=cache_dtype, **more)

        monkeypatch.setattr(pipe, "stream", stream)

    def __call__(self) -> float:
        self.now += self.seconds(self.measured[-1])
        return self.now


@pytest.mark.parametrize(
    ("seconds", "size", "measured"),
    [
        ((0.005, 0.01, 0.02, 0.03), 28, [16, 28]),
        ((0.02, 0.03, 0.05, 0.07), 24, [16, 28, 24]),
        ((0.02, 0.04, 0.07, 0.07), 20, [16, 28, 24, 20]),
        ((0.04, 0.06, 0.1, 0.16), 20, [16, 20]),
        ((0.045, 0.07, 0.1, 0.16), 16, [16, 20]),
        ((0.051, 0.06, 0.06, 0.06), 16, [16]),  # no time is spent on what can hardly hold
        ((0.2, 0.4, 0.8, 1.2), 16, [16]),  # too slow, but there is none smaller
    ],
)
def test_the_largest_size_at_which_one_viewer_gets_16_frames_a_second(
    pipe, monkeypatch, seconds, size, measured
):
    times = dict(zip(SIZES, seconds, strict=True))
    machine = Machine(pipe, monkeypatch, lambda work: times[work.size])
    engine, sentence = start_fitting(pipe, clock=machine)
    engine.shutdown()
    assert (engine.size, [work.size for work in machine.measured]) == (size, measured)
    assert sentence == (
        f"Working size: {size}, at {1 / times[size]:.1f} frames a second for one viewer on this machine. "
        "Choose otherwise with --size."
    )
    assert engine.about == f"Model: tiny. {sentence}" and pipe.config.size == size


@pytest.mark.parametrize(
    ("milliseconds", "size", "steps"),  # of one step at 16, where half of it does not grow with the work
    [(5, 24, 3), (20, 20, 3), (27, 20, 2), (40, 24, 1), (60, 16, 1), (400, 16, 1)],
)
def test_the_most_of_sizes_and_steps_at_which_one_viewer_gets_15_frames_a_second(
    full, monkeypatch, milliseconds, size, steps
):
    def seconds(work: Work) -> float:
        return milliseconds / 1000 * (0.5 + 0.5 * work.cost / 16**2)

    machine = Machine(full, monkeypatch, seconds)
    engine, sentence = start_fitting(full, clock=machine)
    engine.shutdown()
    assert (engine.size, len(full.config.t_index_list)) == (size, steps)
    assert len(machine.measured) <= 5 and {work.cache_dtype for work in machine.measured} == {None}
    assert f"{size}, {steps} denoising step" in sentence and "--size and --steps" in sentence
    faster = [Work(s, n) for s in (16, 20, 24) for n in (1, 2, 3) if seconds(Work(s, n)) <= 1 / 15]
    assert Work(size, steps).cost == max((work.cost for work in faster), default=16**2)


def test_a_given_size_or_number_of_steps_is_kept_and_the_other_measured(full, monkeypatch):
    machine = Machine(full, monkeypatch, lambda work: 0.02 * work.steps)
    engine, _ = start_fitting(full, size=48, clock=machine)
    assert engine.size == 48 and {work.size for work in machine.measured} == {48}
    engine.shutdown()
    assert [work.steps for work in choices(full, steps=4)[0]] == [4, 4]
    for bad in ({"size": 4096}, {"steps": 9}):
        with pytest.raises(ValueError, match=r"4096 is out of range|steps is 9; it must be"):
            choices(full, **bad)


def test_styles_get_no_more_steps_than_are_chosen(full):
    full.styles = {"own": Style("Own", t_index_list=(25, 31, 37, 43)), "four": Style("Four", steps=4)}
    set_work(full, steps=3)
    assert full.styles["own"].t_index_list == (25, 31, 37, 43), "the machine was not found too slow"
    set_work(full, steps=2)
    assert list(full.config.t_index_list) == [30, 42]
    assert full.styles["own"].t_index_list == (25, 43) and full.styles["four"].steps == 2
    assert full.stream(style="four").schedule.steps == full.stream(style="own").schedule.steps == 2


def test_a_few_slow_frames_do_not_decide(pipe, monkeypatch):
    machine = Machine(pipe, monkeypatch, lambda _: 0.005)
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls % 8 == 0:  # every fourth frame
            machine.now += 5.0
        return machine()

    assert measure(pipe, choices(pipe), clock=clock)[0].size == 28


def test_a_model_of_another_size_and_the_full_one_on_a_cpu_keep_theirs(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(working_size, "measure", None)
    monkeypatch.setattr(tiny_pipeline, "about", "")
    engine, sentence = start_fitting(tiny_pipeline)  # 32 has no ladder
    engine.shutdown()
    assert engine.size == 32 and sentence == "Working size: 32, the model's own."
    on_cpu = SimpleNamespace(
        unet=tiny_pipeline.unet, config=SimpleNamespace(size=512, few_step_lora="lora.safetensors")
    )
    assert ladder_of(on_cpu) is None
    on_cpu.config.few_step_lora = None
    assert ladder_of(on_cpu) is LADDERS[512]


def test_an_8_bit_cache_is_chosen_if_memory_is_short(full, monkeypatch):
    side = full.working_size(1, 1, 24)
    whole, small = (2 * bytes_of_cache(full, 3, side, dtype) / 0.9 for dtype in (None, torch.int8))
    for free, expected in ((whole + 99, [None, torch.int8]), (whole - 99, [torch.int8]), (small - 99, None)):
        monkeypatch.setattr(device, "free_bytes", lambda _, free=free: free)
        largest = choices(full)[-1]
        if expected is None:
            assert (largest[0].size, largest[0].steps) != (24, 3)
        else:
            assert [work.cache_dtype for work in largest] == expected
    monkeypatch.setattr(device, "free_bytes", lambda _: 0)
    assert choices(full) == [[Work(16, 1, torch.int8)]], "the least work is tried in any case"
    monkeypatch.setattr(device, "free_bytes", lambda _: 10**12)
    assert {work.cache_dtype for group in choices(full, small_memory=True) for work in group} == {torch.int8}


def quick(full, monkeypatch) -> Machine:
    return Machine(full, monkeypatch, lambda _: 0.001)


def test_out_of_memory_while_measuring_counts_as_too_slow(full, monkeypatch):
    machine = quick(full, monkeypatch)
    smaller = 8 * 4 * (full.working_size(480, 640, 20)[0] // 2) * (full.working_size(480, 640, 20)[1] // 2)
    with Full(full.unet, lambda arguments: arguments[0].numel() > smaller) as memory:
        engine, sentence = start_fitting(full, clock=machine)
    engine.shutdown()
    # 20 with 3 steps would fit as well, but what is more work than 24 with 2 counts as too much.
    assert memory.calls and engine.size == 20 and len(full.config.t_index_list) == 2
    assert sentence.startswith("Working size: 20, 2 denoising steps, at 1000.0 frames a second")


def test_out_of_memory_with_a_full_cache_takes_one_in_8_bits(full, monkeypatch):
    machine = quick(full, monkeypatch)
    with Full(full.unet, lambda arguments: arguments[-1].scales is None) as memory:
        engine, sentence = start_fitting(full, clock=machine)
        with engine.clip("clip", working_size.StreamSettings()) as stream:
            stream.flush()
    engine.shutdown()
    assert memory.calls and "24, 3 denoising steps, an 8-bit cache, at 1000.0" in sentence


def test_out_of_memory_when_room_is_measured_goes_one_step_down(full, monkeypatch):
    seen: list[Work] = []

    def measure_room(pipe, cache_dtype) -> Room:
        seen.append(Work(pipe.config.size, len(pipe.config.t_index_list), cache_dtype))
        if len(seen) <= 2:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB).")
        return Room(1, "Room for 1.")

    monkeypatch.setattr(engine_module, "measure_room", measure_room)
    engine, sentence = start_fitting(full, clock=quick(full, monkeypatch))
    engine.shutdown()
    assert seen == [Work(24, 3), Work(24, 3, torch.int8), Work(20, 3)]
    assert "20, 3 denoising steps, as more does not fit into the memory." in sentence
    assert engine.about.endswith(sentence) and engine.about.count("Working size") == 1


def test_a_size_and_steps_that_were_given_are_kept_in_8_bits(full, monkeypatch):
    def measure_room(_: object, cache_dtype) -> Room:
        if cache_dtype is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Room(1, "Room for 1.")

    monkeypatch.setattr(engine_module, "measure_room", measure_room)
    engine, sentence = start_fitting(full, size=24, steps=2)
    engine.shutdown()
    assert sentence == "Working size: 24, an 8-bit cache, as more does not fit into the memory."


def test_where_nothing_fits_one_sentence_says_so(full, monkeypatch):
    with Full(full.unet, lambda _: True), pytest.raises(ValueError, match="not enough memory for one viewer"):
        monkeypatch.setattr(
            engine_module, "measure_room", lambda pipe, _: pipe([working_size.np.zeros((8, 8, 3), "uint8")])
        )
        start_fitting(full, clock=quick(full, monkeypatch))
    assert full.about == "Model: tiny."

    def fail(*_: object) -> Room:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine_module, "measure_room", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        start_fitting(full, size=16, steps=1)


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that live at once; those of modules and of a cache are known before."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.live = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self.free, key)
        return result

    def free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def test_the_full_model_fits_a_card_of_8_gb_with_2_steps_and_an_8_bit_cache(monkeypatch):
    """Computed: weights, a viewer's and a clip's cache, the warmup's tensors; attention as a GPU fuses it."""
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query)
    )
    pipe = random_model("meta").to(torch.float16)
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    known = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
    weights = sum(tensor.nbytes for tensor in known)
    cache = bytes_of_cache(pipe, 2, (512, 512), torch.int8)
    stored = pipe.unet.new_cache(1, 64, 64, torch.int8, torch.device("meta"))

    def made(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    calls = [
        lambda: pipe.unet(
            made(8, 4, 64, 64),
            made(8, dtype=torch.int64),
            made(8, 77, 768),
            made(8, 4, 64, 64),
            Window.warmup("meta"),
            stored,
        ),
        lambda: encode(pipe.vae, made(8, 3, 512, 512)),
        lambda: decode(pipe.vae, made(8, 4, 64, 64)),
        lambda: inverse_depth(pipe.depth_estimator, made(8, 3, 512, 512)),
    ]
    working = 0
    for call in calls:
        with torch.no_grad(), Peak([*known, *stored.tensors]) as peak:
            call()
        working = max(working, peak.most)
    assert 3.0 * GB < weights < 3.2 * GB and 1.5 * GB < cache < 1.6 * GB
    assert 0.5 * GB < working < 1.1 * GB
    context = 0.6 * GB  # of CUDA and its libraries
    assert weights + 2 * cache + working + context < 8 * 2**30 - 0.3 * GB, "with a display on the card"
    full_cache = bytes_of_cache(pipe, 2, (512, 512), torch.float16)
    assert weights + 2 * full_cache + working + context > 8 * 2**30, "memory asks for 8 bits"
    least = bytes_of_cache(pipe, 1, (384, 384), torch.int8)
    assert weights + 2 * least + working < GPU_BYTES
