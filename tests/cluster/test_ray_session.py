# ruff: noqa: E402 - Ray is an extra: without it these tests are skipped before they import anything of it
"""What a worker takes of a cluster, and how long the first node may take to come."""

from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed")

from helpers.gpu_visits import Clock

from live2diff.cluster import start as module
from live2diff.cluster.ray_session import CPU_WORKER, NODE_SECONDS, worker_resources


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sleep(clock):
    """A function that moves the clock."""

    def sleep(seconds: float) -> None:
        clock.now += seconds

    return sleep


@pytest.mark.parametrize(
    ("node", "options"),
    [
        ({"GPU": 2.0}, {"num_gpus": 1}),
        ({CPU_WORKER: 2.0}, {"num_cpus": 0, "resources": {CPU_WORKER: 1}}),
    ],
)
def test_a_cluster_without_nodes_is_waited_for_and_one_line_says_so(
    node, options, clock, sleep, monkeypatch, capsys
):
    began = clock.now
    monkeypatch.setattr(
        ray, "cluster_resources", lambda: {"CPU": 1.0} | (node if clock.now > began + 200 else {})
    )
    resources = worker_resources("auto", clock, sleep)
    assert (resources.options, resources.workers) == (options, 2)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Waiting for a node with a GPU")


@pytest.mark.parametrize(("where", "waits"), [("auto", True), ("local", False)])
def test_where_no_node_comes_the_error_says_how_to_start_one(where, waits, clock, sleep, monkeypatch):
    began = clock.now
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(ValueError, match="ray start --num-gpus=1"):
        worker_resources(where, clock, sleep)
    assert (clock.now - began >= NODE_SECONDS) == waits


def test_an_engine_starts_once_the_first_node_has_come(monkeypatch):
    """With the real clock, and no Ray behind it."""
    answers = [{}, {"GPU": 1.0}]
    monkeypatch.setattr("live2diff.cluster.ray_session.POLL_SECONDS", 0.0)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: answers.pop(0))
    monkeypatch.setattr(
        "live2diff.cluster.engine.ClusterEngine", lambda *arguments: SimpleNamespace(resources=arguments[1])
    )
    engine = module.start_cluster("auto", lambda: None)
    assert engine.resources.options == {"num_gpus": 1}
    engine.on_shutdown()
