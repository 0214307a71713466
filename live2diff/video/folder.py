"""Translate a folder of clips: find those without a result, run each on its own, report at the end."""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClipError
from .translate import Progress
from .writer import partials_of

SUFFIXES = tuple(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
CLIP_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)  # including NaN and out of memory


@dataclass(frozen=True)
class ClipJob:
    """A clip, and the file for its result."""

    source: Path
    target: Path


@dataclass(frozen=True)
class ClipOutcome:
    """The outcome of one clip: the number of frames, or the message of an error."""

    source: Path
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None

    def __str__(self) -> str:
        """Describe it in one line."""
        if self.error is not None:
            return f"{self.source.name}: failed: {' '.join(self.error.split())}"
        return f"{self.source.name}: {self.frames} frames in {self.seconds:.1f} s"


def find_jobs(folder: Path, target: Path) -> tuple[list[ClipJob], int]:
    """List the clips of `folder` whose results are not in `target` yet; return also how many are.

    `target` is created if necessary. Subfolders are not searched. A result gets its name only when it is
    complete, so a run that was stopped can be continued. Only one run at a time may write to `target`, as
    unfinished files are removed.

    Raises:
        ClipError: there is no clip, `target` is a file or `folder`, or two results would have the same name.
        OSError: `target` cannot be created.
    """
    clips = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    clips = [path for path in clips if not path.name.startswith(".")]
    if not clips:
        raise ClipError(f"{folder} has no clip in it: no file that ends in {', '.join(SUFFIXES)}.")
    if target.exists() and not target.is_dir():
        raise ClipError(f"{target} is a file: the results of a folder need a folder.")
    if target.resolve() == folder.resolve():
        raise ClipError(f"{target} is the folder of the clips: give the results another one.")
    results: dict[str, Path] = {}
    for path in clips:
        other = results.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise ClipError(f"{other.name} and {path.name} would both become {path.stem}.mp4: rename one.")
    target.mkdir(exist_ok=True)
    jobs = [ClipJob(path, target / f"{path.stem}.mp4") for path in clips]
    left = [job for job in jobs if not job.target.is_file()]
    remove_partials(left)
    return left, len(jobs) - len(left)


def remove_partials(jobs: Iterable[ClipJob]) -> None:
    """Remove the unfinished results of processes that were killed."""
    for job in jobs:
        for partial in partials_of(job.target):
            partial.unlink(missing_ok=True)


def attempt(job: ClipJob, translate: Callable[[ClipJob], Generator[Progress]]) -> ClipOutcome:
    """Translate one clip; return an error of the clip or of the model as its outcome."""
    begun, frames = time.monotonic(), 0
    try:
        with closing(translate(job)) as steps:
            for step in steps:
                frames = step.done
    except CLIP_ERRORS as error:
        return ClipOutcome(job.source, error=str(error) or type(error).__name__)
    return ClipOutcome(job.source, frames, time.monotonic() - begun)


def report(jobs: list[ClipJob], skipped: int, outcomes: Generator[ClipOutcome]) -> None:
    """Print a line for each outcome and a final summary, also if the run is interrupted.

    Raises:
        ClipError: some clips failed.
    """
    failed: dict[Path, ClipOutcome] = {}
    try:
        with closing(outcomes):
            for number, outcome in enumerate(outcomes, 1):
                print(f"[{number}/{len(jobs)}] {outcome}", file=sys.stderr, flush=True)
                if outcome.error is not None:
                    failed[outcome.source] = outcome
    finally:
        remove_partials(jobs)
        left = [job for job in jobs if job.source not in failed and not job.target.is_file()]
        done = len(jobs) - len(failed) - len(left)
        counts = {"done": done, "failed": len(failed), "skipped as already done": skipped}
        counts |= {"left for the next run": len(left)} if left else {}
        print(", ".join(f"{count} {what}" for what, count in counts.items()), file=sys.stderr)
        for outcome in failed.values():
            print(f"  {outcome}", file=sys.stderr)
    if failed:
        raise ClipError(f"{len(failed)} of {len(jobs)} clips failed; the same command tries them again.")
