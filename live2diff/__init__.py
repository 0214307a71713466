"""Live2Diff: restyle live video with a causal video diffusion model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load
    from .pipeline import Live2DiffPipeline
    from .streaming.stream import Stream
    from .styles import STYLES

__all__ = ["STYLES", "Live2DiffPipeline", "Stream", "load"]

_MODULES = {
    "STYLES": "styles",
    "Live2DiffPipeline": "pipeline",
    "Stream": "streaming.stream",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and a wrong file name should be reported at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
