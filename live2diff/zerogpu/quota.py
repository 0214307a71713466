"""Compute how long a GPU is requested, and read what is left of a viewer's quota from a refusal."""

import re

from .worker import Job

GPU_SECONDS = 25.0  # of one run, which is renewed; the quota must have as much left as is requested
START_SECONDS = 8.0  # requested on top, for the fork and for moving the weights to the GPU
SHORTEST_RUN = 5.0  # seconds
FRAME_SECONDS = 0.1  # of a frame, until some are measured
CLIP_FACTOR = 1.5  # by which a clip's measured seconds are multiplied
CHARGED = 1.5  # by which `spaces` multiplies the requested seconds
LEFT_OF_QUOTA = re.compile(r"requested vs\. (\d+)s left")  # in a refusal of `spaces`


def seconds_of(job: Job) -> int:
    """Return for how many seconds the GPU is requested."""
    return round(job.seconds + START_SECONDS)


def seconds_left(error: BaseException) -> float | None:
    """Return for how many seconds a run may last by the quota in a refusal; None if it names none."""
    found = LEFT_OF_QUOTA.search(words_of(error))
    return found and int(found[1]) / CHARGED - START_SECONDS - 1  # a second for rounding


def words_of(error: BaseException) -> str:
    """Return the message for a viewer whose run was refused or broken off."""
    words = str(getattr(error, "message", error))  # `gr.Error` quotes its message
    is_anonymous = "exceeded your ZeroGPU quota" in words  # else `spaces` names the kind of account
    return f"{words.strip()} Signing in to Hugging Face gives more time a day." if is_anonymous else words
