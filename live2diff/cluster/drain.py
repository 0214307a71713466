"""Take a machine out of a cluster without a gap for its viewers, before it is stopped or upgraded."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from .ray_session import ray_session

POLL_SECONDS = 2.0  # longer than the front takes to hear of it
ANSWER_SECONDS = 10.0  # a worker that does not answer is not ready, and has no streams


def leave(node: str) -> int:
    """Ask the workers on a node to leave; return how many streams they have.

    The node is given by its id in Ray, its address or its host name.

    Raises:
        ValueError: no worker is on it.
    """
    import ray

    calls: list[Any] = [ray.get_actor(name).leave.remote(node) for name in ray.util.list_named_actors()]
    answered = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)[0] if calls else []
    streams = [count for count in ray.get(answered) if count is not None]
    if not streams:
        raise ValueError(f"No worker of Live2Diff is on the node {node}.")
    return sum(streams)


def drain(options: argparse.Namespace) -> None:
    """Wait until the workers of a node have no streams.

    Raises:
        ValueError: there is no such worker, or some streams stay.
    """
    with ray_session(options.cluster):
        import ray  # an extra

        node = options.node or ray.get_runtime_context().get_node_id()
        ends = time.monotonic() + options.seconds
        leave(node)
        while True:
            time.sleep(POLL_SECONDS)
            if not (streams := leave(node)):
                break
            if time.monotonic() > ends:
                raise ValueError(
                    f"{streams} streams are still there: clips, or viewers for whom no other has room. "
                    "Run this again, or stop the node anyway: clips go on, viewers are the first in line."
                )
    print("Nobody is on this node any more, and nobody comes. Stop it: ray stop")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.cluster.drain", description=__doc__)
    parser.add_argument("--cluster", default="auto", help="auto, or the address of the cluster's head")
    parser.add_argument("--node", help="its id in Ray, address or host name; this machine unless given")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to wait (120)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = build_parser()
    try:
        drain(parser.parse_args(arguments))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
