"""Replace the forwards of modules while a function runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn


class Overrides:
    """Replacement forwards by module; several `Overrides` can be nested."""

    def __init__(self, forwards: Mapping[nn.Module, Callable[..., Any]]) -> None:
        self.forwards = forwards

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the forwards of the modules inside the block."""
        before = {module: vars(module).get("forward") for module in self.forwards}
        for module, forward in self.forwards.items():
            module.forward = forward
        try:
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that the forwards are replaced while it runs."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.active():
                return function(*arguments, **options)

        return call
