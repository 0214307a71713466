"""Simulate a device without memory for some calls."""

from collections.abc import Callable

import torch
from torch import nn


class Full:
    """Raise as torch does when `when(arguments)` is true of a module's call; `calls` counts how often."""

    def __init__(self, module: nn.Module, when: Callable[[tuple], bool]):
        self.calls, self.when = 0, when
        self.hook = module.register_forward_pre_hook(self.refuse)

    def refuse(self, _: nn.Module, arguments: tuple) -> None:
        if self.when(arguments):
            self.calls += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
