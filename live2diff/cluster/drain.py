"""Move the viewers of a machine to others without a gap, before it is stopped or upgraded."""

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress

from ..command import run_main
from .ray_session import ray_session

POLL_SECONDS = 2.0  # longer than the front takes to notice
ANSWER_SECONDS = 10.0  # a worker that does not answer is not ready, and has no streams


def leave(node: str) -> int | None:
    """Ask the workers on a node to leave; return how many streams they have, None if there is no worker.

    The node is given by its id in Ray, its address or its host name.
    """
    import ray
    from ray.exceptions import RayActorError

    calls, streams = [], []
    for name in ray.util.list_named_actors():
        with suppress(ValueError):  # the actor has just ended
            calls.append(ray.get_actor(name).leave.remote(node))
    for call in ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)[0] if calls else []:
        with suppress(RayActorError):
            streams.append(ray.get(call))
    counts = [count for count in streams if count is not None]
    return sum(counts) if counts else None


def drain(options: argparse.Namespace) -> None:
    """Wait until the workers of a node have no streams.

    Raises:
        ValueError: the node has no worker, or some streams are still there after `options.seconds`.
    """
    with ray_session(options.cluster):
        import ray  # an extra

        node = options.node or ray.get_runtime_context().get_node_id()
        ends = time.monotonic() + options.seconds
        if leave(node) is None:
            raise ValueError(f"No worker of Live2Diff is on the node {node}.")
        time.sleep(POLL_SECONDS)
        while streams := leave(node):
            time.sleep(POLL_SECONDS)
            if time.monotonic() > ends:
                raise ValueError(
                    f"{streams} streams are still there: clips, or viewers for whom no other worker has "
                    "room. Run this again, or stop the node anyway: clips go on, viewers are first in line."
                )
    print("This node has no streams and gets no more. Stop it: ray stop")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.cluster.drain", description=__doc__)
    parser.add_argument("--cluster", default="auto", help="auto, or the address of the cluster's head")
    parser.add_argument("--node", help="id in Ray, address or host name (default: this machine)")
    parser.add_argument("--seconds", type=float, default=120.0, help="time to wait (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(build_parser(), drain, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
