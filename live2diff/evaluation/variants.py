"""The model with a part left out, by changing what its UNet is called with; no weight is touched."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..config import WARMUP_FRAMES
from ..model.attention import Window
from ..model.unet import StreamUNet
from ..pipeline import Live2DiffPipeline

Call = dict[str, Any]  # the arguments of `StreamUNet.forward` by name


def without_warmup_slots(window: Window) -> Window:
    """The window of streaming frames that do not see the 8 warmup frames; the warmup's own stays as it is."""
    if window.frames > 1:
        return window
    mask = window.mask.clone()
    mask[..., :WARMUP_FRAMES] = False
    return replace(window, mask=mask)


# What each variant changes in a call. `StreamUNet.forward` says what None stands for.
VARIANTS: dict[str, Callable[[Call], Call]] = {
    "model": lambda call: {},
    "without motion": lambda call: {"window": None},
    "without warmup": lambda call: {"window": without_warmup_slots(call["window"])},
    "without depth": lambda call: {"depth_latents": None},
}


@contextmanager
def variant(pipeline: Live2DiffPipeline, name: str) -> Iterator[None]:
    """While it is open, every stream of `pipeline` is the variant of that name in `VARIANTS`.

    The model itself runs as it does elsewhere; the others are left to PyTorch's own kernels.
    """
    unet, runtime = pipeline.unet, pipeline.runtime
    signature = inspect.signature(unet.forward)

    def change(_: StreamUNet, positional: tuple, named: Call) -> tuple[tuple, Call]:
        call = signature.bind(*positional, **named).arguments
        return (), {**call, **VARIANTS[name](call)}

    if name != "model":
        pipeline.runtime = None
    hook = unet.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        pipeline.runtime = runtime
