"""PersistentVolumes: directories of this machine, which a claim without a storage class binds.

Every node is this machine, so any of them can have any volume, and several at once. A volume
whose claim is gone is emptied and offered again by the next `up`.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.api import Api
    from devcluster.layout import Layout

_COUNT = 32
_PATH = "/api/v1/persistentvolumes"
_LABEL = "modelscaling.dev/devcluster"
_USED_UP = frozenset({"Released", "Failed"})
_GROUP = 65532
_DELETION_TIMEOUT_S = 20


def offer(layout: Layout, api: Api) -> None:
    """Make sure that all volumes exist, and empty those whose claim is gone."""
    found = {v["metadata"]["name"]: v for v in api.items(_PATH, labelSelector=_LABEL)}
    used_up = [n for n, v in found.items() if v.get("status", {}).get("phase") in _USED_UP]
    for name in used_up:
        api.delete(f"{_PATH}/{name}")
        wait_until(
            lambda name=name: not api.get(f"{_PATH}/{name}"),  # type: ignore[misc]
            what=f"deletion of PersistentVolume {name}",
            timeout_s=_DELETION_TIMEOUT_S,
        )
        shutil.rmtree(layout.volumes / name)
    for index in range(_COUNT):
        name = f"devcluster-{index:02}"
        if name in found and name not in used_up:
            continue
        _make_directory(layout.volumes / name)
        api.apply(_PATH, persistent_volume(name, layout.volumes / name))


def persistent_volume(name: str, directory: Path) -> dict[str, Any]:
    """Return a PersistentVolume of this directory."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {_LABEL: "true"}},
        "spec": {
            # Nominal: nothing limits a directory, and a claim takes a volume of at least its size.
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(directory)},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
                            ]
                        }
                    ]
                }
            },
        },
    }


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    # For pods that ask for no fsGroup; with one the kubelet does this to what is in it as well.
    os.chown(path, 0, _GROUP)
    path.chmod(0o2775)
