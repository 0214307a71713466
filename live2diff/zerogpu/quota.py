"""How long a GPU is asked for, and what is left of a viewer's day as far as `spaces` says it."""

import re

from .worker import Job

GPU_SECONDS = 25.0  # of one run, which is renewed; what is asked for must be left of the viewer's quota
START_SECONDS = 8.0  # for the fork and the weights' way to the GPU, asked for on top
SHORTEST_RUN = 5.0  # seconds
FRAME_SECONDS = 0.1  # of a frame, until some were measured
GENEROUSLY = 1.5  # times the measured seconds are asked for, for a clip
CHARGED = 1.5  # times what it is asked for is what `spaces` asks the quota for
LEFT_OF_QUOTA = re.compile(r"requested vs\. (\d+)s left")  # in the words of `spaces`


def seconds_of(job: Job) -> int:
    """Return how long the GPU is asked for."""
    return round(job.seconds + START_SECONDS)


def seconds_left(error: BaseException) -> float | None:
    """Return how long a run may last by the quota that a refusal names; None if it names none."""
    found = LEFT_OF_QUOTA.search(words_of(error))
    return found and int(found[1]) / CHARGED - START_SECONDS - 1  # a second for rounding


def words_of(error: BaseException) -> str:
    """Return what to tell a viewer whose run was refused or broken off."""
    words = str(getattr(error, "message", error))  # `gr.Error` quotes its message
    is_anonymous = "exceeded your ZeroGPU quota" in words  # else `spaces` names the kind of account
    return f"{words.strip()} Signing in to Hugging Face gives more time a day." if is_anonymous else words
