"""The manifest for Kubernetes: fields that KubeRay knows, one version of Ray, nothing open to the world."""

from typing import Any

import pytest
import yaml
from helpers.paths import ROOT

# Of `ray.io/v1` in KubeRay's API reference (1.7): https://docs.ray.io/en/master/kuberay/references/api.html
CLUSTER = """authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec
    headServiceAnnotations managedBy networkPolicy rayVersion suspend tlsOptions upgradeStrategy
    workerGroupSpecs"""
AUTOSCALER = """args command env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext
    upscalingMode version volumeMounts"""
HEAD = "enableIngress headService ingressOptions labels rayStartParams resources serviceType template"
WORKERS = """groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams
    replicas resources scaleStrategy suspend template"""
CONTAINER = "name image command args ports env volumeMounts lifecycle livenessProbe readinessProbe resources"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [*yaml.safe_load_all((ROOT / "live2diff" / "cluster" / "kuberay.yaml").read_text())]


@pytest.fixture
def spec(documents) -> dict[str, Any]:
    return documents[0]["spec"]


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    [container] = group["template"]["spec"]["containers"]
    return container


def test_only_fields_that_kuberay_knows_are_used(documents, spec):
    assert (documents[0]["apiVersion"], documents[0]["kind"]) == ("ray.io/v1", "RayCluster")
    assert set(spec) <= set(CLUSTER.split())
    assert set(spec["autoscalerOptions"]) <= set(AUTOSCALER.split())
    assert set(spec["headGroupSpec"]) <= set(HEAD.split())
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= set(WORKERS.split())
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert set(container_of(group)) <= set(CONTAINER.split())
        # KubeRay refuses numbers and booleans here.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_version_of_ray_is_the_one_that_is_installed(spec):
    requirements = (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    assert f"ray=={spec['rayVersion']}" in requirements


def test_ray_asks_for_a_token_has_no_dashboard_and_is_reached_from_inside_only(documents, spec):
    assert spec["authOptions"] == {"mode": "token"}
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["include-dashboard"] == "false"
    assert head["serviceType"] == "ClusterIP" and "enableIngress" not in head
    assert {port["name"] for port in container_of(head)["ports"]} == {"gcs", "page"}
    service = documents[1]["spec"]
    assert service["type"] == "ClusterIP" and [port["targetPort"] for port in service["ports"]] == ["page"]
    assert service["selector"]["ray.io/cluster"] == documents[0]["metadata"]["name"]


def test_each_worker_has_a_gpu_and_their_number_can_change(spec):
    assert spec["enableInTreeAutoscaling"] is True
    [group] = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    worker = container_of(group)
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container_of(spec["headGroupSpec"])["resources"]["limits"]


def test_both_commands_start_ray_with_what_the_operator_generates(documents, spec):
    assert documents[0]["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        container = container_of(group)
        assert container["command"] == ["bash", "-c", "--"]
        [script] = container["args"]
        assert "$KUBERAY_GEN_RAY_START_CMD" in script
    [script] = container_of(spec["headGroupSpec"])["args"]
    options = "--cluster auto --autoscale --model live2diff --host 0.0.0.0 --port 7860"
    assert script.endswith(f"python -m app {options}")
