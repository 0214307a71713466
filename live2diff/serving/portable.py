"""Errors on their way to another process."""

from ..errors import EngineBusy, NonFiniteError, StreamClosed, StreamOutOfMemory, is_out_of_memory

# Raised again in the other process, with their type: the first one that fits.
ERRORS = (StreamOutOfMemory, NonFiniteError, StreamClosed, EngineBusy, ValueError, OSError, RuntimeError)


def portable(error: BaseException) -> Exception:
    """Return an error that can be pickled, with the same words; the original may refer to any object."""
    if is_out_of_memory(error):
        return StreamOutOfMemory()
    for kind in ERRORS:
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
