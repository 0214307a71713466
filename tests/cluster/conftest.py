"""A Ray cluster of two nodes with a CPU and a worker each, and an engine in front, for a module's tests."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.paths import ROOT
from helpers.recall import Recall, recall_engine
from helpers.workers import tiny_engine, tiny_pipeline, write_weights

from live2diff.cluster.ray_session import (
    CPU_WORKER,
    ENVIRONMENT,
    LOCAL_ENVIRONMENT,
    NAMESPACE,
    WorkerResources,
)
from live2diff.serving.engine import Engine

if TYPE_CHECKING:
    from helpers.fleet import Fleet

# Before Ray is imported.
os.environ |= ENVIRONMENT | LOCAL_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}

NODE = {"num_cpus": 1, "resources": {CPU_WORKER: 1}, "object_store_memory": 80_000_000}
HEAD = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
# A dead node is noticed by Ray after 2 seconds, so that its worker moves to the next node soon.
CHECKS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
NEVER = 1e6


@pytest.fixture(scope="module", params=["recall", pytest.param("tiny", marks=pytest.mark.long)])
def model(request, tmp_path_factory) -> tuple[Any, Callable[[], Engine]]:
    """A model, and a function that makes an engine on the same one in a worker."""
    if request.param == "recall":
        return Recall(), recall_engine
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder)
    return tiny_pipeline(folder), partial(tiny_engine, folder)


@pytest.fixture
def pipeline(model) -> Iterator[Any]:
    """The same model as in the workers, which use one thread: two round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield model[0]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shared_fleet(model) -> Iterator[Fleet]:
    import ray  # an extra: the modules of the tests are skipped without it
    from helpers.fleet import Fleet, OffsetClock
    from ray.cluster_utils import Cluster

    from live2diff.cluster.engine import ClusterEngine
    from live2diff.cluster.remote_worker import Deadlines

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"_system_config": CHECKS})
        for _ in range(2):
            cluster.add_node(**NODE)
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address=cluster.address, namespace=NAMESPACE, **quiet)
        resources = WorkerResources({"num_cpus": 0, "resources": {CPU_WORKER: 1}}, 2)
        clock = OffsetClock()
        engine = ClusterEngine(
            model[1],
            resources,
            # Generous: the machine of the tests may be slow. Nobody but a test looks after the workers.
            deadlines=Deadlines(60.0, 240.0),
            idle_seconds=NEVER,
            clock=clock,
            watch_seconds=NEVER,
        )
        yield Fleet(cluster, engine, clock, NODE)
        engine.shutdown()
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def fleet(shared_fleet) -> Iterator[Fleet]:
    """Two workers without streams."""
    shared_fleet.wait_for_workers()
    yield shared_fleet
    shared_fleet.close_streams()
