from __future__ import annotations

import dataclasses
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from modelscaling.api.crd import modelscaling_crd
from modelscaling_operator.settings import PREFIX, Settings, parse_settings
from tests.charts.matrix import EVERYTHING, MATRIX
from tests.charts.rendered import Manifest, Render, find, of_kind, pod_templates

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster

KUBERNETES = "1.37.0"
PROMETHEUS_OPERATOR = "monitoring.coreos.com/v1"

each_set_of_values = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


@each_set_of_values
def test_helm_lint_finds_nothing(
    values: dict[str, Any], helm: str, chart: Path, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))

    linted = subprocess.run(
        [helm, "lint", "--strict", chart, "--values", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert linted.returncode == 0, linted.stdout


@each_set_of_values
def test_every_manifest_is_valid_for_kubernetes(values: dict[str, Any], render: Render) -> None:
    manifests = render(values)

    for manifest in manifests:
        if manifest["apiVersion"] != PROMETHEUS_OPERATOR:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert of_kind(manifests, "Deployment")


@each_set_of_values
def test_every_manifest_has_the_recommended_labels(values: dict[str, Any], render: Render) -> None:
    name = values.get("nameOverride", "modelscaling")

    for manifest in render(values):
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == name
        assert labels["app.kubernetes.io/instance"] == "msc"
        assert labels["app.kubernetes.io/part-of"] == "modelscaling"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@each_set_of_values
def test_no_name_occurs_twice(values: dict[str, Any], render: Render) -> None:
    identities = [
        (manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"])
        for manifest in render(values)
    ]

    assert len(identities) == len(set(identities))


def test_the_definition_is_the_one_that_the_api_generates(render: Render) -> None:
    crd = of_kind(render(), "CustomResourceDefinition")[0]

    assert crd["spec"] == modelscaling_crd()["spec"]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        pytest.param(True, {"helm.sh/resource-policy": "keep"}, id="kept"),
        pytest.param(False, None, id="not kept"),
    ],
)
def test_the_definition_stays_after_an_uninstall_if_it_is_to_be_kept(
    render: Render, *, keep: bool, expected: dict[str, str] | None
) -> None:
    crd = of_kind(render({"crds": {"keep": keep}}), "CustomResourceDefinition")[0]

    assert crd["metadata"].get("annotations") == expected


@each_set_of_values
def test_every_selector_selects_pods_of_the_operator(
    values: dict[str, Any], render: Render
) -> None:
    manifests = render(values)
    deployment = of_kind(manifests, "Deployment")[0]
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in of_kind(manifests, "Service")),
        *(
            selected["spec"]["selector"]["matchLabels"]
            for selected in of_kind(manifests, "PodDisruptionBudget", "PodMonitor")
            if "matchLabels" in selected["spec"]["selector"]
        ),
        *(
            policy["spec"]["podSelector"]["matchLabels"]
            for policy in of_kind(manifests, "NetworkPolicy")
            if "matchLabels" in policy["spec"]["podSelector"]
        ),
    ]

    for selector in selectors:
        assert selector.items() <= labels.items()


def test_no_selector_of_the_operator_selects_a_hook(render: Render) -> None:
    manifests = render()
    selector = find(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    hooks = [
        template
        for template in pod_templates(manifests)
        if template["metadata"]["labels"]["app.kubernetes.io/component"] != "operator"
    ]

    assert len(hooks) == 2
    for hook in hooks:
        assert not selector.items() <= hook["metadata"]["labels"].items()


def test_ports_are_found_by_their_name(render: Render) -> None:
    manifests = render(EVERYTHING)
    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    names = {port["name"] for port in container["ports"]}

    assert {probe["httpGet"]["port"] for probe in _probes(container)} <= names
    assert {
        port["targetPort"]
        for port in find(manifests, "Service", "msc-modelscaling-metrics")["spec"]["ports"]
    } <= names
    assert {
        endpoint["port"]
        for endpoint in find(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    } <= names


def _probes(container: Manifest) -> list[Manifest]:
    return [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]


def test_one_replica_has_no_disruption_budget_that_would_block_a_drain(render: Render) -> None:
    assert of_kind(render({"replicaCount": 1}), "PodDisruptionBudget") == []


def test_a_digest_takes_precedence_over_the_tag(render: Render) -> None:
    digest = f"sha256:{'a' * 64}"
    manifests = render({"image": {"repository": "r/o", "tag": "v1", "digest": digest}})

    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"r/o@{digest}"


def test_both_monitors_keep_the_labels_of_the_runs(render: Render) -> None:
    monitors = of_kind(render(EVERYTHING), "PodMonitor")

    assert len(monitors) == 2
    for monitor in monitors:
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["honorLabels"] is True


def test_the_operator_gets_the_settings_that_the_values_say(render: Render) -> None:
    manifests = render(
        {
            "watchNamespaces": ["research", "production"],
            "trainer": {"image": {"repository": "r/t", "tag": "v2", "pullPolicy": "Always"}},
            "pollIntervalSeconds": 0.5,
            "leaseDurationSeconds": 15,
            "log": {"level": "DEBUG"},
        }
    )
    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}

    assert parse_settings([], environment | {"MODELSCALING_IDENTITY": "pod"}) == Settings(
        namespaces=("research", "production"),
        trainer_image="r/t:v2",
        image_pull_policy="Always",
        poll_interval_s=0.5,
        metrics_port=8080,
        lease_name="msc-modelscaling",
        lease_namespace="system",
        lease_duration_s=15,
        identity="pod",
        log_level="DEBUG",
    )


def test_every_variable_of_the_operator_is_one_that_it_reads(render: Render) -> None:
    container = find(render(), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    known = {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)}

    given = {entry["name"] for entry in container["env"] if entry["name"].startswith(PREFIX)}

    # The pod's name is its identity, which the operator finds by itself.
    assert given == known - {f"{PREFIX}IDENTITY"}
