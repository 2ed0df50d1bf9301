"""The pod of a run: the operator's own part, merged with the user's template.

It satisfies the Pod Security Standard `restricted` unless the template undoes that.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import GROUP, TRAINER_CONTAINER
from modelscaling.protocol import (
    AGENT_PORT,
    AGENT_PORT_NAME,
    CHECKPOINT_MOUNT,
    CONFIGURATION_FILE,
    GRACE_PERIOD_S,
    KEY_FILE,
    SCRATCH_MOUNT,
    SOURCE_MOUNT,
    AgentEnvironment,
)
from modelscaling_operator.identity import INDEX_LABEL, REVISION_LABEL, RunIdentity
from modelscaling_operator.merge import TemplateError, merge_template

if TYPE_CHECKING:
    from modelscaling.api.modelscaling import ModelScalingSpec

_USER = 65532
_RESERVED_SPEC = {
    "restartPolicy": "the operator replaces pods, because a restart must be counted",
    "hostname": "it is NAME-INDEX",
    "subdomain": "it is NAME",
}
_OPEN_METADATA = frozenset({"labels", "annotations"})


_LOST_NODE_WEIGHT = 100
"""The most that a preference can weigh: only where there is no other node a lost one is tried."""


def pod_manifest(
    run: RunIdentity,
    spec: ModelScalingSpec,
    index: int,
    *,
    image: str,
    pull_policy: str,
    avoid_nodes: tuple[str, ...] = (),
    source_uid: str | None = None,
) -> dict[str, Any]:
    """Return the pod of `index`; `image` is that of the trainer where the template has none. It
    prefers other nodes than `avoid_nodes`. `source_uid` is that of the run which
    spec.model.initFrom.modelScaling names, once it is known.

    Raises:
        TemplateError: spec.template or spec.checkpoint.volume is not a pod's.
    """
    _refuse_reserved(spec.template)
    base = {"spec": _pod_spec(run, spec, index, image=image, pull_policy=pull_policy)}
    if source_uid is not None:
        _mount_source(base["spec"], run, spec, source_uid)
    merged = merge_template(base, spec.template)
    _check_trainer(merged)
    if avoid_nodes:
        _prefer_others(merged["spec"], avoid_nodes)
    metadata = run.metadata(run.pod_name(index))
    given = merged.get("metadata", {})
    metadata["labels"] = {
        **given.get("labels", {}),
        **metadata["labels"],
        INDEX_LABEL: str(index),
        REVISION_LABEL: pod_revision(spec),
    }
    metadata["annotations"] = given.get("annotations", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": merged["spec"]}


def pod_revision(spec: ModelScalingSpec) -> str:
    """Return a digest of what the spec says about its pods: pods of another one are replaced.

    The operator's own part is left out, so that an upgrade of the operator replaces no pod.
    """
    volume = spec.checkpoint.volume if spec.checkpoint else None
    return f"{spec.processes_per_replica}-{_digest(volume)}-{_digest(spec.template)}"


def have_same_template(revision: str, other: str) -> bool:
    """Whether pods of two revisions were made from the same template."""
    return revision.rpartition("-")[2] == other.rpartition("-")[2]


def save_to_same_volume(revision: str, other: str) -> bool:
    """Whether pods of two revisions save to the same volume, or both to none."""
    return revision.split("-")[1:2] == other.split("-")[1:2]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def template_image(spec: ModelScalingSpec) -> str | None:
    """Return the image that the template gives the trainer, if it does."""
    template = spec.template.get("spec")
    containers = template.get("containers") if isinstance(template, dict) else None
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, dict) and container.get("name") == TRAINER_CONTAINER:
            image = container.get("image")
            return image if isinstance(image, str) else None
    return None


def _pod_spec(
    run: RunIdentity, spec: ModelScalingSpec, index: int, *, image: str, pull_policy: str
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": run.config_map_name}},
        {"name": "key", "secret": {"secretName": run.secret_name, "defaultMode": 0o440}},
        {"name": "scratch", "emptyDir": {}},
        # Loaders and collectives of torch share memory; the default of 64 MiB is too small.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": _directory(CONFIGURATION_FILE), "readOnly": True},
        {"name": "key", "mountPath": _directory(KEY_FILE), "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH_MOUNT},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - a path in the pod
    ]
    if spec.checkpoint is not None:
        volumes.append({"name": "checkpoints", **_volume_source(spec.checkpoint.volume)})
        # The UID keeps a new run of the same name from resuming an old one's checkpoints.
        mounts.append(
            {
                "name": "checkpoints",
                "mountPath": CHECKPOINT_MOUNT,
                "subPath": f"{run.namespace}/{run.name}/{run.uid}",
            }
        )
    return {
        "restartPolicy": "Never",
        "hostname": run.pod_name(index),
        "subdomain": run.service_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            # Walking a large volume to change owners takes minutes; once is enough.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [
            _container(run, spec, index, image=image, pull_policy=pull_policy, mounts=mounts)
        ],
    }


def _mount_source(
    pod_spec: dict[str, Any], run: RunIdentity, spec: ModelScalingSpec, uid: str
) -> None:
    """Give the trainer the directory of the run that it begins with."""
    assert spec.model.init_from is not None
    assert spec.model.init_from.model_scaling is not None
    (container,) = pod_spec["containers"]
    container["volumeMounts"].append(
        {
            "name": "checkpoints",
            "mountPath": SOURCE_MOUNT,
            "subPath": f"{run.namespace}/{spec.model.init_from.model_scaling.name}/{uid}",
            "readOnly": True,
        }
    )


def _container(
    run: RunIdentity,
    spec: ModelScalingSpec,
    index: int,
    *,
    image: str,
    pull_policy: str,
    mounts: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "name": TRAINER_CONTAINER,
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": ["modelscaling-agent"],
        "env": _environment(run, spec, index),
        "ports": [{"name": AGENT_PORT_NAME, "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": AGENT_PORT_NAME},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def _environment(run: RunIdentity, spec: ModelScalingSpec, index: int) -> list[dict[str, Any]]:
    own = {
        AgentEnvironment.NAMESPACE: run.namespace,
        AgentEnvironment.NAME: run.name,
        AgentEnvironment.RUN_UID: run.uid,
        AgentEnvironment.INDEX: str(index),
        AgentEnvironment.PROCESSES: str(spec.processes_per_replica),
        # The user has no entry in /etc/passwd, and both are asked for by libraries at import.
        "HOME": SCRATCH_MOUNT,
        "USER": GROUP.partition(".")[0],
    }
    return [
        *({"name": str(name), "value": value} for name, value in own.items()),
        {
            "name": AgentEnvironment.ADDRESS.value,
            "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
        },
    ]


def _volume_source(volume: dict[str, Any]) -> dict[str, Any]:
    (source, content), *_ = volume.items()
    if source == "name" or not isinstance(content, dict):
        raise TemplateError(
            f"spec.checkpoint.volume={volume!r} is not a volume source; write one such as "
            f"{{persistentVolumeClaim: {{claimName: NAME}}}}"
        )
    return volume


def _refuse_reserved(template: dict[str, Any]) -> None:
    """Refuse what the template would say in vain."""
    for part in template:
        if part not in {"metadata", "spec"}:
            raise TemplateError(
                f"spec.template.{part} is not a field of a pod template; it has metadata and spec"
            )
    for part in ("metadata", "spec"):
        if not isinstance(template.get(part, {}), dict):
            raise TemplateError(f"spec.template.{part}={template[part]!r} must be a map")
    for field in template.get("metadata", {}):
        if field not in _OPEN_METADATA:
            raise TemplateError(
                f"spec.template.metadata.{field} cannot be set; labels and annotations can"
            )
        content = template["metadata"][field]
        if not isinstance(content, dict):
            raise TemplateError(f"spec.template.metadata.{field}={content!r} must be a map")
    for field, why in _RESERVED_SPEC.items():
        if field in template.get("spec", {}):
            raise TemplateError(f"spec.template.spec.{field} cannot be set: {why}; remove it")


def _prefer_others(pod_spec: dict[str, Any], nodes: tuple[str, ...]) -> None:
    """Add a preference to those that the template has."""
    affinity = pod_spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
        *affinity.get("preferredDuringSchedulingIgnoredDuringExecution", []),
        {"weight": _LOST_NODE_WEIGHT, "preference": {"matchFields": others}},
    ]


def _check_trainer(merged: dict[str, Any]) -> None:
    """Refuse a template that takes away what the operator relies on."""
    containers = merged.get("spec", {}).get("containers", [])
    trainer = next((c for c in containers if c.get("name") == TRAINER_CONTAINER), None)
    if trainer is None:
        raise TemplateError(
            f"spec.template takes the container {TRAINER_CONTAINER} away; the run trains in it, "
            f"keep it"
        )
    ports = [port.get("containerPort") for port in trainer.get("ports", [])]
    if AGENT_PORT not in ports:
        raise TemplateError(
            f"spec.template takes the port {AGENT_PORT} of the container {TRAINER_CONTAINER} away; "
            f"the operator steers the run through it, keep it"
        )


def _directory(path: str) -> str:
    return path.rpartition("/")[0]
