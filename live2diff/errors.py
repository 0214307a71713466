"""Every exception that a caller may catch."""

from __future__ import annotations

GONE = "This stream has ended. Start it again."


class EngineBusy(RuntimeError):
    """Every place is taken by a visitor whose frames keep coming."""


class StreamClosed(RuntimeError):
    """The stream was never opened, was closed, or was freed after a silence: open it again."""


class ServerStopping(StreamClosed):
    """The server ends, and its streams with it."""

    def __init__(self) -> None:
        super().__init__("The server is being stopped.")


class StreamOutOfMemory(RuntimeError):
    """The device ran out of memory over this stream, which has ended; there are fewer places from now on."""

    WORDS = (
        "The server has not enough memory for this stream. Choose fewer denoising steps, or try again later. "
        "Who runs the server can have it serve fewer visitors at once (--streams)."
    )

    def __init__(self, words: str = WORDS) -> None:
        super().__init__(words)


class NonFiniteError(RuntimeError):
    """The model gives NaN or infinity even after a fresh start; the stream has ended."""


class GpuSessionOver(StreamClosed):
    """The GPU was lent for so long and no longer; open the stream again for the next visit."""

    def __init__(self) -> None:
        super().__init__("The time on the GPU is over. Start again to continue.")


class ClipError(ValueError):
    """A clip that cannot be read or written; the message says why and what to do about it."""


class LimitReached(ValueError):
    """A limit is reached; the words are for whoever reached it."""


class ClipStopped(RuntimeError):
    """Somebody wanted the translation to end, or the server could not go on with it; says which."""

    def __init__(self, why: str = "Cancelled."):
        super().__init__(why)
