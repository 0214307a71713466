"""Translate a folder of clips on a Ray cluster, by Ray Data."""

import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..video.folder import CLIP_ERRORS, ClipJob, ClipOutcome, attempt
from ..video.translate import Progress
from .ray_session import WorkerResources, ray_session, worker_resources

ROUNDS = 4  # a clip whose worker died is tried again in the next one, and given up after the last
ALONE = 2  # the last rounds, in which each clip runs alone: no other clip can end its worker
Translate = Callable[[ClipJob], Generator[Progress]]


class FolderWorker:
    """An actor of Ray Data that loads a model and translates clips, one after the other."""

    def __init__(self, make: Callable[[], Translate]) -> None:
        self.failure = ""
        try:
            self.translate = make()
        except CLIP_ERRORS as error:  # every clip would fail: report it once, and end the run
            self.failure = str(error) or type(error).__name__

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Translate the only clip of a batch; return its row of results."""
        job = ClipJob(Path(batch["source"][0]), Path(batch["target"][0]))
        outcome = ClipOutcome(job.source) if self.failure else attempt(job, self.translate)
        row = {"source": str(job.source), "frames": outcome.frames, "seconds": outcome.seconds}
        row |= {"error": outcome.error or "", "failure": self.failure}
        return {name: [value] for name, value in row.items()}


def translate_on_cluster(
    where: str, jobs: Sequence[ClipJob], make: Callable[[], Translate]
) -> Generator[ClipOutcome]:
    """Translate clips on all workers of the cluster at `where`; yield the outcomes as they come.

    Each worker calls `make` once, and the function that it returns for each clip. Clips and results are files
    that all nodes must have under the same paths.

    Raises:
        ValueError: the cluster cannot be used, or a worker cannot load the model.
    """
    with ray_session(where):
        yield from translate_in_rounds(worker_resources(where), jobs, make)


def translate_in_rounds(
    resources: WorkerResources, jobs: Sequence[ClipJob], make: Callable[[], Translate]
) -> Generator[ClipOutcome]:
    """Translate clips as `translate_on_cluster`, on the connected cluster."""
    left = {str(job.source.absolute()): job for job in jobs}  # links to one clip are separate
    for number in range(1, ROUNDS + 1):
        is_alone = number > ROUNDS - ALONE
        batches = [{source: job} for source, job in left.items()] if is_alone else [{**left}]
        for batch in batches:
            for source, outcome in run_round(resources, batch, make):
                del left[source]
                yield outcome
    for job in left.values():
        yield ClipOutcome(job.source, error=f"its worker died, in {ROUNDS} attempts.")


def run_round(
    resources: WorkerResources, jobs: Mapping[str, ClipJob], make: Callable[[], Translate]
) -> Iterator[tuple[str, ClipOutcome]]:
    """Translate clips; yield each source and its outcome, except for clips whose worker died."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the summary names lost workers
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # without limit: a dead worker's clips are missing in the results
    rows = [{"source": source, "target": str(job.target.resolve())} for source, job in jobs.items()]
    if not rows:
        return
    size = min(resources.workers, len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of `max_restarts`, for which there is no newer name yet
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            FolderWorker,
            fn_constructor_args=(make,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            max_restarts=0,  # else a clip that kills its worker is tried again forever
            **resources.options,
        )
    for row in results.iter_rows():
        if row["failure"]:
            raise ValueError(row["failure"])
        outcome = ClipOutcome(jobs[row["source"]].source, row["frames"], row["seconds"], row["error"] or None)
        yield row["source"], outcome
