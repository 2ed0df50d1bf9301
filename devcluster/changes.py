"""What the cluster changes on the machine beyond its own directories, to put it back on `down`."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from devcluster.files import write

if TYPE_CHECKING:
    from devcluster.layout import Layout

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The kubelet sets these, and refuses to start when it may not.
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Paths that are compiled into the kubelet, containerd and the CNI library.
_FIXED_DIRECTORIES = (
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/containers",
    "/run/containerd",
    "/opt/containerd",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How the machine was before, and whether a removal has begun."""

    boot_id: str
    kernel: dict[str, str]
    absent: list[str]
    """Fixed directories that did not exist."""
    being_removed: bool = False

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has been on since."""
        return self.boot_id == _boot_id()


def load(layout: Layout) -> Changes | None:
    """Return what was noted; None when there is no cluster."""
    if not layout.state.exists():
        return None
    return Changes(**json.loads(layout.state.read_text()))


def note(layout: Layout) -> None:
    """Note how the machine is, before the first start of a cluster."""
    changes = Changes(
        boot_id=_boot_id(),
        kernel={name: _setting(name).read_text().strip() for name in _KERNEL_SETTINGS},
        absent=[path for path in _FIXED_DIRECTORIES if not Path(path).exists()],
    )
    _save(layout, changes)


def note_removal(layout: Layout, changes: Changes) -> None:
    """Note that the cluster is being removed: half of one must not be started again."""
    _save(layout, replace(changes, being_removed=True))


def revert(changes: Changes) -> None:
    """Put the machine back; after a restart of the machine only the directories are left."""
    if changes.is_of_this_boot:
        for name, value in changes.kernel.items():
            _setting(name).write_text(value)
    for path in changes.absent:
        shutil.rmtree(path, ignore_errors=True)


def left(changes: Changes) -> list[str]:
    """Return what was not put back."""
    return [f"directory {path}" for path in changes.absent if Path(path).exists()]


def _save(layout: Layout, changes: Changes) -> None:
    write(layout.state, json.dumps(asdict(changes), indent=1))


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
