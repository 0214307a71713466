"""Convert errors for another process."""

from ..errors import EngineBusy, NonFiniteError, StreamClosed, StreamOutOfMemory, is_out_of_memory

# The types that are kept; of several that fit, the first one.
ERRORS = (StreamOutOfMemory, NonFiniteError, StreamClosed, EngineBusy, ValueError, OSError, RuntimeError)


def portable(error: BaseException) -> Exception:
    """Return a picklable error with the same message; the original may hold any object."""
    if is_out_of_memory(error):
        return StreamOutOfMemory()
    for kind in ERRORS:
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
