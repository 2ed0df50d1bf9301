from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling_operator.merge import TemplateError, merge_template

if TYPE_CHECKING:
    from demo.kubectl import Cluster

BASE: dict[str, Any] = {
    "metadata": {"labels": {"app": "a"}},
    "spec": {
        "securityContext": {"runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [
            {
                "name": "trainer",
                "image": "trainer:1",
                "command": ["modelscaling-agent"],
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "u"}],
                "ports": [{"name": "metrics", "containerPort": 9400, "protocol": "TCP"}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
                "securityContext": {"capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}


def trainer(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


CASES = [
    pytest.param({}, id="nothing"),
    pytest.param({"metadata": {"labels": {"team": "x", "app": "b"}}}, id="labels"),
    pytest.param({"metadata": {"labels": {"app": None}}}, id="null removes a key"),
    pytest.param(trainer(image="trainer:2"), id="a scalar of a container"),
    pytest.param(
        trainer(resources={"limits": {"memory": "1Gi"}, "requests": {"cpu": "1"}}),
        id="a map that is new",
    ),
    pytest.param(
        trainer(env=[{"name": "HOME", "value": "/home"}, {"name": "MORE", "value": "1"}]),
        id="env by name",
    ),
    pytest.param(
        trainer(env=[{"name": "USER", "$patch": "delete"}]), id="an item deleted by its key"
    ),
    pytest.param(
        trainer(env=[{"$patch": "replace"}, {"name": "ONLY", "value": "1"}]), id="a list replaced"
    ),
    pytest.param(
        trainer(volumeMounts=[{"name": "scratch", "mountPath": "/data", "readOnly": True}])
        | {"metadata": {}},
        id="volumeMounts by mountPath",
    ),
    pytest.param(
        trainer(volumeMounts=[{"name": "scratch", "mountPath": "/tmp", "subPath": "x"}]),
        id="a volumeMount changed",
    ),
    pytest.param(
        trainer(ports=[{"containerPort": 9500, "protocol": "TCP", "name": "more"}]),
        id="ports by containerPort",
    ),
    pytest.param(trainer(command=["other"], args=["--x"]), id="a list of words is replaced"),
    pytest.param(
        {"spec": {"containers": [{"name": "sidecar", "image": "s:1"}]}}, id="another container"
    ),
    pytest.param(
        {"spec": {"initContainers": [{"name": "fetch", "image": "f:1"}]}}, id="an init container"
    ),
    pytest.param(
        {"spec": {"volumes": [{"name": "data", "hostPath": {"path": "/data"}}]}},
        id="volumes by name",
    ),
    pytest.param(
        {"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}, id="tolerations"
    ),
    pytest.param({"spec": {"nodeSelector": {"gpu": "h100"}}}, id="nodeSelector"),
    pytest.param(
        {"spec": {"securityContext": {"$patch": "replace", "runAsUser": 1}}}, id="a map replaced"
    ),
    pytest.param(
        {"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}},
        id="a map inside a map",
    ),
    pytest.param(
        {
            "spec": {
                "topologySpreadConstraints": [
                    {
                        "maxSkew": 1,
                        "topologyKey": "zone",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app": "a"}},
                    }
                ]
            }
        },
        id="topologySpreadConstraints",
    ),
    pytest.param({"spec": {"imagePullSecrets": [{"name": "registry"}]}}, id="imagePullSecrets"),
]


@pytest.mark.cluster
@pytest.mark.parametrize("patch", CASES)
def test_a_template_is_merged_as_the_api_server_does(
    cluster: Cluster, patch: dict[str, Any]
) -> None:
    """A PodTemplate is patched on the server, dry, and compared with ours after its defaults."""
    body = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "merge"}}
    created = cluster.run(
        "kubectl",
        "create",
        "--dry-run=server",
        "--output=json",
        "--filename=-",
        stdin=json.dumps({**body, "template": merge_template(BASE, patch)}),
    )
    merged_here = json.loads(created)["template"]

    applied = cluster.run(
        "kubectl",
        "patch",
        "--local",
        "--type=strategic",
        f"--patch={json.dumps({'template': patch})}",
        "--output=json",
        "--filename=-",
        stdin=json.dumps({**body, "template": BASE}),
    )
    merged_there = cluster.run(
        "kubectl", "create", "--dry-run=server", "--output=json", "--filename=-", stdin=applied
    )

    assert merged_here == json.loads(merged_there)["template"]


def test_the_base_is_not_changed() -> None:
    before = json.dumps(BASE)

    merge_template(BASE, trainer(env=[{"name": "HOME", "value": "/home"}]))

    assert json.dumps(BASE) == before


def test_kept_keys_drop_the_others() -> None:
    merged = merge_template(
        {"spec": {"volumes": [{"name": "a", "emptyDir": {}}]}},
        {"spec": {"volumes": [{"name": "a", "$retainKeys": ["name", "hostPath"], "hostPath": {}}]}},
    )

    assert merged == {"spec": {"volumes": [{"name": "a", "hostPath": {}}]}}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        pytest.param(
            {"spec": {"containers": 5}}, "spec.template.spec.containers=5 must be a list", id="list"
        ),
        pytest.param(
            {"spec": {"containers": [{"image": "x"}]}},
            "spec.template.spec.containers has the item {'image': 'x'} without name, which tells "
            "the items apart; set it",
            id="an item without its key",
        ),
        pytest.param(
            {"spec": {"securityContext": 5}},
            "spec.template.spec.securityContext=5 must be a map, as in a pod template",
            id="a number where a map is",
        ),
        pytest.param(
            {"spec": {"$patch": "upsert"}},
            "spec.template.spec.$patch='upsert' is not one of merge, replace, delete",
            id="an unknown $patch",
        ),
        pytest.param(
            {"spec": {"$setElementOrder/volumes": []}},
            "spec.template.spec has the directive $setElementOrder/volumes; only $patch and "
            "$retainKeys are understood",
            id="a directive of generated patches",
        ),
        pytest.param(
            {"spec": {"$retainKeys": 1}},
            "spec.template.spec.$retainKeys=1 must be a list of field names",
            id="kept keys that are no list",
        ),
    ],
)
def test_a_template_of_another_structure_is_refused(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError) as error:
        merge_template(BASE, patch)

    assert str(error.value) == message
