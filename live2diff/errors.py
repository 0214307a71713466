"""Every exception that a caller may catch."""

from __future__ import annotations

GONE = "This stream has ended. Start it again."
# CUDA's allocator raises torch.OutOfMemoryError; MPS and CUDA's libraries raise a RuntimeError like these.
OUT_OF_MEMORY = (
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

DEVICE_LOST = 3  # exit code of a process whose device has failed


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether this is an out-of-memory error of torch, without importing torch."""
    is_own = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, RuntimeError) and (is_own or any(words in str(error) for words in OUT_OF_MEMORY))


class EngineBusy(RuntimeError):
    """Every stream of the engine is in use by a viewer who keeps sending frames."""


class StreamClosed(RuntimeError):
    """The stream was never opened, was closed, or was freed while idle: open it again."""


class ServerStopping(StreamClosed):
    """The server is shutting down and has closed its streams."""

    WORDS = "The server is being stopped."

    def __init__(self, words: str | None = None) -> None:
        super().__init__(self.WORDS if words is None else words)


class DeviceLost(ServerStopping):
    """The device has failed and every operation on it fails; the process has to exit."""

    WORDS = "The GPU of this server has failed, and the server ends. Try again after it has been restarted."


class StreamOutOfMemory(RuntimeError):
    """The device ran out of memory for this stream, which was closed."""

    WORDS = (
        "There is not enough memory on the server for this stream. Choose fewer denoising steps, or try "
        "again later. If you run the server, let it serve fewer viewers at once (--streams)."
    )

    def __init__(self, words: str = WORDS) -> None:
        super().__init__(words)


class NonFiniteError(RuntimeError):
    """The model output NaN or infinity again after a new warmup; the stream was closed."""


class GpuSessionOver(StreamClosed):
    """The GPU session of ZeroGPU has expired; open the stream again in the next one."""

    def __init__(self) -> None:
        super().__init__("The time on the GPU is over. Start again to continue.")


class LiveError(RuntimeError):
    """A server refused or ended a live stream, or refused an update; the message is the server's."""


class ClipError(ValueError):
    """A clip cannot be read or written; the message says why and what to do about it."""


class LimitReached(ValueError):
    """A limit for visitors is reached; the message is meant for the visitor."""


class ClipStopped(RuntimeError):
    """The translation of a clip was cancelled or could not continue; the message says which."""

    def __init__(self, why: str = "Cancelled.") -> None:
        super().__init__(why)
