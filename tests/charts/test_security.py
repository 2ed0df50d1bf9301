from __future__ import annotations

from typing import Any

import pytest

from modelscaling_operator.kube import LEASE_RULES, RULES, Rule
from tests.charts.matrix import MATRIX
from tests.charts.rendered import Manifest, Render, find, of_kind, pod_templates, rules

pytestmark = pytest.mark.cluster

each_set_of_values = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


@each_set_of_values
def test_every_pod_meets_the_restricted_standard_with_a_read_only_root(
    values: dict[str, Any], render: Render
) -> None:
    pods = list(pod_templates(render(values)))

    assert pods
    for pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all(volume.keys() <= {"name", "emptyDir"} for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True


@each_set_of_values
def test_every_container_has_a_user_name_and_a_home_that_it_may_write(
    values: dict[str, Any], render: Render
) -> None:
    for pod in pod_templates(render(values)):
        for container in pod["spec"]["containers"]:
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert environment["USER"] == "modelscaling"
            assert environment["HOME"] == "/tmp"


@each_set_of_values
def test_no_role_has_a_wildcard(values: dict[str, Any], render: Render) -> None:
    for rule in rules(render(values)):
        assert "nonResourceURLs" not in rule
        assert not any("*" in entry for entries in rule.values() for entry in entries)


def _rights(role: Manifest) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _needed(rules: tuple[Rule, ...]) -> set[tuple[str, str, str]]:
    return {(rule.group, rule.resource, verb) for rule in rules for verb in rule.verbs}


def test_the_operator_may_do_what_it_needs_to_and_no_more(render: Render) -> None:
    of_the_cluster = find(render(), "ClusterRole", "system-msc-modelscaling")
    manifests = render({"watchNamespaces": ["research"]})
    of_a_namespace = find(manifests, "Role", "system-msc-modelscaling")

    assert _rights(of_the_cluster) == _needed(RULES)
    assert _rights(of_a_namespace) == _needed(RULES)
    assert of_kind(manifests, "ClusterRoleBinding") == []


def test_the_operator_may_touch_no_lease_but_its_own(render: Render) -> None:
    manifests = render()
    role = find(manifests, "Role", "msc-modelscaling-lease")
    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}

    assert _rights(role) == _needed(LEASE_RULES)
    for rule in role["rules"]:
        # A name cannot be asked for in a creation: the object has none yet.
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == [
            environment["MODELSCALING_LEASE_NAME"]
        ]


@each_set_of_values
def test_the_chart_holds_no_secret(values: dict[str, Any], render: Render) -> None:
    assert of_kind(render(values), "Secret") == []


def test_the_operator_of_two_namespaces_has_no_right_outside_them(render: Render) -> None:
    manifests = render({"watchNamespaces": ["research", "production"]})
    subject = {"kind": "ServiceAccount", "name": "msc-modelscaling", "namespace": "system"}

    bindings = [
        binding
        for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding")
        if subject in binding["subjects"]
    ]
    assert sorted((b["kind"], b["metadata"]["namespace"]) for b in bindings) == [
        ("RoleBinding", "production"),
        ("RoleBinding", "research"),
        ("RoleBinding", "system"),
    ]


@each_set_of_values
def test_every_binding_binds_a_role_of_the_chart_to_the_account_of_the_operator(
    values: dict[str, Any], render: Render
) -> None:
    manifests = render(values)
    account = of_kind(manifests, "Deployment")[0]["spec"]["template"]["spec"]["serviceAccountName"]
    roles = {_identity(role) for role in of_kind(manifests, "Role", "ClusterRole")}

    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
        reference = binding["roleRef"]
        assert (reference["kind"], binding["metadata"].get("namespace"), reference["name"]) in roles
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account, "namespace": "system"}
        ]


def _identity(manifest: Manifest) -> tuple[str, str | None, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace"), metadata["name"]


def test_who_may_view_a_namespace_may_view_its_runs_and_no_more(render: Render) -> None:
    role = find(render(), "ClusterRole", "system-msc-modelscaling-view")

    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"modelscaling.dev"}


def test_who_may_edit_a_namespace_cannot_write_the_status_of_its_runs(render: Render) -> None:
    role = find(render(), "ClusterRole", "system-msc-modelscaling-edit")

    resources = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert resources == {"modelscalings", "modelscalings/scale"}


def test_the_operator_answers_on_its_metrics_port_alone(render: Render) -> None:
    policy = find(render(), "NetworkPolicy")["spec"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert [rule["ports"] for rule in policy["ingress"]] == [
        [{"port": "metrics", "protocol": "TCP"}]
    ]


def test_pods_of_runs_are_protected_wherever_the_operator_has_runs(render: Render) -> None:
    manifests = render({"watchNamespaces": ["research", "production"]})
    policies = [
        policy
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["metadata"]["name"].endswith("-runs")
    ]

    assert [policy["metadata"]["namespace"] for policy in policies] == ["research", "production"]
    for policy in policies:
        among_runs, from_outside = policy["spec"]["ingress"]
        assert "ports" not in among_runs
        assert all(peer.keys() == {"podSelector"} for peer in among_runs["from"])
        assert from_outside["ports"] == [{"port": 9400, "protocol": "TCP"}]
