"""Start an engine on a Ray cluster."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from ..serving.engine import Engine
from .autoscale import Autoscaler, ray_request
from .ray_session import WorkerResources, ray_session, worker_resources


def count_workers(resources: WorkerResources) -> int:
    """Return for how many workers the cluster has room now."""
    import ray

    kind = "GPU" if "num_gpus" in resources.options else next(iter(resources.options["resources"]))
    return int(ray.cluster_resources().get(kind, 0))


def start_cluster(where: str, make_engine: Callable[[], Engine], autoscale: bool = False) -> Engine:
    """Connect to Ray at `local`, `auto` or an address; return a `ClusterEngine` once one worker is ready.

    `make_engine` is called in the process of each worker. With `autoscale` there are as many workers as
    viewers need, requested from the cluster's autoscaler.

    Raises:
        ValueError: as `ray_session` and `worker_resources`.
        ValueError, OSError, RuntimeError: no worker could start; the error is that of `make_engine`.
    """
    with ExitStack() as stack:
        stack.enter_context(ray_session(where))
        resources = worker_resources(where)
        from .engine import ClusterEngine  # Ray is an extra

        autoscaler = None
        if autoscale:
            request = ray_request(resources)
            stack.callback(request, 0)  # a request outlives this process
            autoscaler = Autoscaler(request)
        engine = ClusterEngine(make_engine, resources, partial(count_workers, resources), autoscaler)
        engine.on_shutdown = stack.pop_all().close
        return engine
