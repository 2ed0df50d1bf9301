from __future__ import annotations

from typing import Any

import pytest

from modelscaling.api.validation import parse_spec
from modelscaling.protocol import SOURCE_MOUNT
from modelscaling_operator.dependencies import (
    config_map_manifest,
    key_of,
    secret_manifest,
    service_manifest,
)
from modelscaling_operator.merge import TemplateError
from modelscaling_operator.pod import (
    have_same_template,
    pod_manifest,
    pod_revision,
    save_to_same_volume,
    template_image,
)
from modelscaling_operator.wish import Rejection, Wish, resolve_wish
from tests.operator.runs import CHECKPOINT
from tests.operator.world import RUN
from tests.shared.spec import make_spec


def manifest(index: int = 0, **changes: Any) -> dict[str, Any]:
    spec = parse_spec(make_spec(**changes))
    return pod_manifest(RUN, spec, index, image="trainer:1", pull_policy="Never")


def trainer(pod: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = pod["spec"]["containers"]
    return next(c for c in containers if c["name"] == "trainer")


def test_a_pod_belongs_to_its_run_and_has_a_name_in_dns() -> None:
    pod = manifest(3)

    assert pod["metadata"]["name"] == "tiny-3"
    assert pod["metadata"]["ownerReferences"][0]["uid"] == RUN.uid
    assert pod["metadata"]["labels"]["modelscaling.dev/index"] == "3"
    assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "modelscaling"
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("tiny-3", "tiny")


def test_an_agent_learns_who_it_is() -> None:
    env = {item["name"]: item.get("value") for item in trainer(manifest(3))["env"]}

    assert env == {
        "MODELSCALING_NAMESPACE": "research",
        "MODELSCALING_NAME": "tiny",
        "MODELSCALING_RUN_UID": "run-uid",
        "MODELSCALING_INDEX": "3",
        "MODELSCALING_PROCESSES": "1",
        "MODELSCALING_ADDRESS": None,
        "HOME": "/tmp",
        "USER": "modelscaling",
    }


def test_checkpoints_of_a_new_run_of_the_same_name_are_apart() -> None:
    volume = {"persistentVolumeClaim": {"claimName": "runs"}}
    pod = manifest(checkpoint={"volume": volume})

    mount = next(m for m in trainer(pod)["volumeMounts"] if m["name"] == "checkpoints")
    assert mount["subPath"] == "research/tiny/run-uid"
    assert {"name": "checkpoints", **volume} in pod["spec"]["volumes"]


def test_the_template_adds_to_the_pod_and_cannot_take_its_identity() -> None:
    pod = manifest(
        template={
            "metadata": {
                "labels": {"team": "x", "modelscaling.dev/index": "7"},
                "annotations": {"a": "b"},
            },
            "spec": {
                "nodeSelector": {"gpu": "yes"},
                "containers": [{"name": "trainer", "image": "mine:2"}],
            },
        }
    )

    assert pod["metadata"]["labels"]["team"] == "x"
    assert pod["metadata"]["labels"]["modelscaling.dev/index"] == "0"
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert pod["spec"]["nodeSelector"] == {"gpu": "yes"}
    assert trainer(pod)["image"] == "mine:2"
    assert trainer(pod)["securityContext"]["readOnlyRootFilesystem"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"template": {"spce": {}}}, "spec.template.spce is not a field", id="field"),
        pytest.param({"template": {"spec": 5}}, "spec.template.spec=5 must be a map", id="spec"),
        pytest.param(
            {"template": {"metadata": {"name": "x"}}},
            "spec.template.metadata.name cannot be set",
            id="a name",
        ),
        pytest.param(
            {"template": {"metadata": {"labels": 5}}},
            "spec.template.metadata.labels=5 must be a map",
            id="labels that are none",
        ),
        pytest.param(
            {"template": {"spec": {"restartPolicy": "Always"}}},
            "spec.template.spec.restartPolicy cannot be set: the operator replaces pods",
            id="a restart policy",
        ),
        pytest.param(
            {"template": {"spec": {"containers": [{"name": "trainer", "$patch": "delete"}]}}},
            "spec.template takes the container trainer away",
            id="no trainer",
        ),
        pytest.param(
            {
                "template": {
                    "spec": {"containers": [{"name": "trainer", "ports": [{"$patch": "replace"}]}]}
                }
            },
            "spec.template takes the port 9400 of the container trainer away",
            id="no port",
        ),
        pytest.param(
            {"checkpoint": {"volume": {"foo": 1}}},
            "spec.checkpoint.volume={'foo': 1} is not a volume source",
            id="a volume that is none",
        ),
    ],
)
def test_what_a_template_cannot_say_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError) as error:
        manifest(**changes)

    assert message in str(error.value)


def test_pods_are_replaced_for_what_the_spec_says_about_them_alone() -> None:
    base = pod_revision(parse_spec(make_spec()))

    assert pod_revision(parse_spec(make_spec(replicas=2))) == base
    assert pod_revision(parse_spec(make_spec(training__seed=1))) == base
    assert pod_revision(parse_spec(make_spec(processesPerReplica=2))) != base
    assert pod_revision(parse_spec(make_spec(template={"spec": {}}))) != base


@pytest.mark.parametrize(
    ("changes", "has_same_template", "saves_to_same_volume"),
    [
        ({}, True, True),
        ({"template": {"spec": {"nodeSelector": {"gpu": "yes"}}}}, False, True),
        ({"processesPerReplica": 2}, True, True),
        ({"checkpoint": CHECKPOINT}, True, False),
        ({"checkpoint": CHECKPOINT, "template": {"spec": {}}}, False, False),
    ],
)
def test_a_revision_says_what_pods_differ_in(
    changes: dict[str, Any], *, has_same_template: bool, saves_to_same_volume: bool
) -> None:
    base = pod_revision(parse_spec(make_spec()))
    edited = pod_revision(parse_spec(make_spec(**changes)))

    assert have_same_template(edited, base) is has_same_template
    assert save_to_same_volume(edited, base) is saves_to_same_volume


def test_a_pod_prefers_other_nodes_than_those_that_were_just_lost() -> None:
    zone = {"weight": 1, "preference": {"matchExpressions": []}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [zone]}}
    spec = parse_spec(make_spec(template={"spec": {"affinity": affinity}}))
    body = pod_manifest(
        RUN, spec, 0, image="trainer:1", pull_policy="Never", avoid_nodes=("node-1", "node-2")
    )

    preferred = body["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert preferred[0] == zone
    assert [
        (term["key"], term["operator"], term["values"])
        for term in preferred[1]["preference"]["matchFields"]
    ] == [("metadata.name", "NotIn", ["node-1"]), ("metadata.name", "NotIn", ["node-2"])]


def test_a_wish_knows_the_meshes_of_fewer_pods_and_those_that_have_none() -> None:
    wish = resolve_wish(RUN, make_spec(replicas=4))
    assert isinstance(wish, Wish)
    meshes = {n: plan and str(plan.mesh) for n in range(1, 5) for plan in [wish.plan_for(n)]}

    assert meshes == {1: "single", 2: "dp2", 3: None, 4: "dp4"}


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"spec": 5},
        {"spec": {"containers": 5}},
        {"spec": {"containers": [5]}},
        {"spec": {"containers": [{"name": "trainer", "image": 5}]}},
    ],
)
def test_a_template_without_an_image_has_none(template: dict[str, Any]) -> None:
    assert template_image(parse_spec(make_spec(template=template))) is None


@pytest.mark.parametrize("name", ["my.run", "1run", "Run"])
def test_a_name_that_no_host_can_have_is_rejected(name: str) -> None:
    run = type(RUN)(namespace="a", name=name, uid="u")

    rejection = resolve_wish(run, make_spec())

    assert isinstance(rejection, Rejection)
    assert f"metadata.name={name} is not a host name" in rejection.message


def test_what_pods_rely_on_belongs_to_the_run() -> None:
    wish = resolve_wish(RUN, make_spec())
    assert isinstance(wish, Wish)
    secret = secret_manifest(RUN, b"secret")
    objects = [
        service_manifest(RUN),
        config_map_manifest(RUN, wish.configuration, wish.plan.mesh),
        secret,
    ]

    assert [o["metadata"]["name"] for o in objects] == ["tiny", "tiny", "tiny-key"]
    assert all(o["metadata"]["ownerReferences"][0]["uid"] == RUN.uid for o in objects)
    assert key_of(secret) == b"secret"
    assert key_of({}) == b""


def test_a_pod_reads_the_checkpoints_of_the_run_that_its_own_begins_with() -> None:
    changes = {
        "model__initFrom": {"modelScaling": {"name": "small"}},
        "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "runs"}}},
    }
    spec = parse_spec(make_spec(**changes))
    pod = pod_manifest(RUN, spec, 0, image="trainer:1", pull_policy="Never", source_uid="small-uid")

    (mount,) = [
        mount for mount in trainer(pod)["volumeMounts"] if mount["mountPath"] == SOURCE_MOUNT
    ]
    assert mount == {
        "name": "checkpoints",
        "mountPath": SOURCE_MOUNT,
        "subPath": "research/small/small-uid",
        "readOnly": True,
    }
    wish = resolve_wish(RUN, make_spec(**changes))
    assert isinstance(wish, Wish)
    assert wish.configuration.init_from is not None
    assert wish.configuration.init_from.path == SOURCE_MOUNT
