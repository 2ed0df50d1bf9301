"""The objects that a run's pods rely on: Service, ConfigMap and Secret."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelscaling.protocol import (
    AGENT_PORT,
    AGENT_PORT_NAME,
    CONFIGURATION_FILE,
    KEY_FILE,
    MESH_FILE,
)

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling_operator.identity import RunIdentity

KEY_BYTES = 32


def service_manifest(run: RunIdentity) -> dict[str, Any]:
    """Return the headless Service; it knows pods before they are ready, since they form a group
    to become so.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": run.metadata(run.service_name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"modelscaling.dev/name": run.name},
            "ports": [{"name": AGENT_PORT_NAME, "port": AGENT_PORT, "protocol": "TCP"}],
        },
    }


def config_map_manifest(
    run: RunIdentity, configuration: RunConfiguration, mesh: Mesh
) -> dict[str, Any]:
    """Return the ConfigMap with the configuration and the mesh that pods warm up with."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": run.metadata(run.config_map_name),
        "data": {
            _file_name(CONFIGURATION_FILE): configuration.model_dump_json(indent=2),
            _file_name(MESH_FILE): json.dumps(asdict(mesh), indent=2),
        },
    }


def secret_manifest(run: RunIdentity, key: bytes) -> dict[str, Any]:
    """Return the Secret with the run's key."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": run.metadata(run.secret_name),
        "type": "Opaque",
        "data": {_file_name(KEY_FILE): base64.b64encode(key).decode()},
    }


def key_of(secret: dict[str, Any]) -> bytes:
    """Return the key in a Secret; empty where there is none."""
    return base64.b64decode((secret.get("data") or {}).get(_file_name(KEY_FILE), ""))


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]
