"""Start Ray on this machine, or connect to a running cluster."""

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CPU_WORKER = "live2diff"  # resource of a node without GPUs: one for each worker it has room for
NAMESPACE = "live2diff"  # of the actors' names
CONNECT_SECONDS = 5.0
NODE_SECONDS = 600.0  # to wait for the first node with room: a new machine takes minutes
POLL_SECONDS = 1.0
OBJECT_STORE_BYTES = 100_000_000  # little is kept there
ENVIRONMENT = {  # read when Ray is imported, and by the processes that it starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # without it, whoever reaches the cluster can run code on all nodes
    "RAY_worker_niceness": "0",  # by default 15: any other process of the machine would come first
    # Milliseconds, by default 1000, that Ray waits for the cause of a death before it reports the death.
    "RAY_timeout_ms_task_wait_for_death_info": "100",
}
LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # listen on 127.0.0.1 only


@dataclass(frozen=True)
class WorkerResources:
    """The Ray options of one worker, and for how many workers the cluster has room."""

    options: dict[str, Any]
    workers: int


@contextmanager
def ray_session(where: str) -> Iterator[None]:
    """Connect to Ray at `local`, `auto` (the cluster of this machine) or an address, within a context.

    Environment variables that are set already keep their values.

    Raises:
        ValueError: Ray is not installed or cannot be reached.
    """
    environment = ENVIRONMENT
    options: dict[str, Any] = {"address": where, "namespace": NAMESPACE}
    options |= {"log_to_driver": False, "logging_level": "ERROR"}
    if where == "local":
        environment = ENVIRONMENT | LOCAL_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        options |= {
            "num_cpus": os.cpu_count(),
            "resources": {CPU_WORKER: min(2, os.cpu_count() or 1)},
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ValueError("--cluster needs Ray: pip install '.[cluster]' in the repository's folder") from None
    if where not in ("local", "auto"):
        check_address(where)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises this very class if a node does not start in time
        if where == "local":
            raise ValueError(f"Ray cannot be started on this machine: {error}") from None
        raise ValueError(
            f"There is no Ray cluster at {where} that takes this token (RAY_AUTH_TOKEN or ~/.ray/auth_token; "
            f"set RAY_AUTH_MODE=disabled for a cluster without): {error}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise ValueError unless a server listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(f"There is no Ray cluster at {address}, which must be HOST:PORT: {error}") from None


def worker_resources(
    where: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> WorkerResources:
    """Return the resources of a worker in the connected cluster; wait for the first node with room.

    Raises:
        ValueError: there is none after NODE_SECONDS; with `local`, at once.
    """
    import ray

    ends = clock() + (0.0 if where == "local" else NODE_SECONDS)
    if (resources := resources_of(ray.cluster_resources())) is None and clock() < ends:
        line = f"Waiting for a node with a GPU or the resource {CPU_WORKER} in the Ray cluster at {where}."
        print(line, file=sys.stderr, flush=True)
    while resources is None and clock() < ends:
        sleep(POLL_SECONDS)
        resources = resources_of(ray.cluster_resources())
    if resources is not None:
        return resources
    raise ValueError(
        f"The Ray cluster at {where} has no room for a worker: neither a GPU nor the resource {CPU_WORKER}. "
        f"""Start nodes with `ray start --num-gpus=1`, or `--resources='{{"{CPU_WORKER}": 1}}'` on a CPU."""
    )


def resources_of(total: Mapping[str, float]) -> WorkerResources | None:
    """Return the resources of a worker: a GPU where there are GPUs, else CPU_WORKER; None without either."""
    if total.get("GPU"):
        return WorkerResources({"num_gpus": 1}, int(total["GPU"]))
    if total.get(CPU_WORKER):
        return WorkerResources({"num_cpus": 0, "resources": {CPU_WORKER: 1}}, int(total[CPU_WORKER]))
    return None
