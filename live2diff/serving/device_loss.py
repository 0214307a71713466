"""End an engine whose device has failed: after a sticky CUDA error every later call fails too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import DeviceLost, NonFiniteError, StreamClosed, StreamOutOfMemory, is_out_of_memory
from .event_log import log

if TYPE_CHECKING:
    from .engine import Engine


def is_stream_fault(error: RuntimeError) -> bool:
    """Return whether an error concerns one stream: out of memory, NaN, infinity."""
    return is_out_of_memory(error) or isinstance(error, StreamOutOfMemory | NonFiniteError)


def watched(engine: Engine, function: Callable, *arguments: Any, **options: Any) -> Any:
    """Call a function; if it fails because the device is lost, end the engine.

    Raises:
        DeviceLost: the device is lost; `engine.failure` says why, and every session ends with this error.
    """
    try:
        return function(*arguments, **options)
    except RuntimeError as error:
        is_expected = is_stream_fault(error) or isinstance(error, StreamClosed)
        if is_expected or not engine.owns_device:
            raise
        from ..runtime.device import is_lost

        if not is_lost(engine.pipe.unet.device):
            raise
        engine.failure = f"The device has failed: {(str(error).splitlines() or [type(error).__name__])[0]}"
        log.critical("%s; the server ends", engine.failure)
        for session in engine.registry.all():
            if engine.remove(session, "device lost"):
                session.stream = None  # nothing on the device can be freed
                session.freed.set_result(None)
        engine.end()
        raise DeviceLost from error
