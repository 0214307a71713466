"""Every exception that a caller may catch."""

from __future__ import annotations

GONE = "This stream has ended. Start it again."
# CUDA's allocator raises torch.OutOfMemoryError; MPS and CUDA's libraries, a RuntimeError with these words.
OUT_OF_MEMORY = (
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

DEVICE_LOST = 3  # exit code of a process whose device computes nothing any more


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch raised this because a device has too little memory; torch is not imported."""
    is_own = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (is_own or any(words in str(error) for words in OUT_OF_MEMORY))


class EngineBusy(RuntimeError):
    """Every stream of the engine is in use by a viewer who keeps sending frames."""


class StreamClosed(RuntimeError):
    """The stream was never opened, was closed, or was freed after a silence: open it again."""


class ServerStopping(StreamClosed):
    """The server is shutting down, and its streams with it."""

    def __init__(self) -> None:
        super().__init__("The server is being stopped.")


class DeviceLost(ServerStopping):
    """The device computes nothing any more, whatever is asked of it; the process has to end."""

    WORDS = (
        "The GPU of this server has failed, and the server ends. Try again once it has been started again."
    )

    def __init__(self, words: str = WORDS) -> None:
        StreamClosed.__init__(self, words)


class StreamOutOfMemory(RuntimeError):
    """The device ran out of memory over this stream, which was closed."""

    WORDS = (
        "There is not enough memory on the server for this stream. Choose fewer denoising steps, or try "
        "again later. If you run the server, let it serve fewer viewers at once (--streams)."
    )

    def __init__(self, words: str = WORDS) -> None:
        super().__init__(words)


class NonFiniteError(RuntimeError):
    """The model gives NaN or infinity even after another warmup; the stream was closed."""


class GpuSessionOver(StreamClosed):
    """The time for which the GPU was lent is over; open the stream again for the next session."""

    def __init__(self) -> None:
        super().__init__("The time on the GPU is over. Start again to continue.")


class LiveError(RuntimeError):
    """A server has refused or ended a live stream, or refused an update; the message is its sentence."""


class ClipError(ValueError):
    """A clip cannot be read or written; the message says why and what to do about it."""


class LimitReached(ValueError):
    """A limit on visitors is reached; the message is for the visitor."""


class ClipStopped(RuntimeError):
    """The translation of a clip was cancelled or could not go on; the message says which."""

    def __init__(self, why: str = "Cancelled.") -> None:
        super().__init__(why)
