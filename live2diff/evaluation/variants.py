"""Run the model with a part left out, by changing the UNet's arguments; no weight is touched."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from ..config import WARMUP_FRAMES
from ..model.attention import Window
from ..pipeline import Live2DiffPipeline

Arguments = dict[str, Any]  # of `StreamUNet.forward` by name


def without_warmup_slots(window: Window) -> Window:
    """Hide the 8 warmup frames from streaming frames; the warmup's own window stays as it is."""
    if window.frames > 1:
        return window
    mask = window.mask.clone()
    mask[..., :WARMUP_FRAMES] = False
    return replace(window, mask=mask)


# The arguments that each variant replaces. `StreamUNet.forward` says what None stands for.
VARIANTS: dict[str, Callable[[Arguments], Arguments]] = {
    "model": lambda arguments: {},
    "without motion": lambda arguments: {"window": None},
    "without warmup": lambda arguments: {"window": without_warmup_slots(arguments["window"])},
    "without depth": lambda arguments: {"depth_latents": None},
}


@contextmanager
def variant(pipeline: Live2DiffPipeline, name: str) -> Iterator[None]:
    """Run every stream of `pipeline` inside the block as the variant of that name in `VARIANTS`.

    "model" keeps its runtime; the others run on PyTorch's own kernels.
    """
    signature = inspect.signature(pipeline.unet.forward)

    def change(_: Any, positional: tuple, named: Arguments) -> tuple[tuple, Arguments]:
        arguments = signature.bind(*positional, **named).arguments
        return (), {**arguments, **VARIANTS[name](arguments)}

    runtime = pipeline.runtime if name == "model" else None
    hook = pipeline.unet.register_forward_pre_hook(change, with_kwargs=True)
    try:
        with patch.object(pipeline, "runtime", runtime):
            yield
    finally:
        hook.remove()
