"""How much of the host's memory the processes of this pod may still take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/meminfo")
_KIB = 1024


def free_bytes(control_group: Path = _CONTROL_GROUP, machine: Path = _MACHINE) -> int | None:
    """Return what is left of the pod's limit or of the machine's memory, whichever is less; None
    where neither is known, as on another system than Linux.
    """
    known = [free for free in (_of_control_group(control_group), _of_machine(machine)) if free]
    return min(known, default=None)


def _of_control_group(directory: Path) -> int | None:
    """Return what is left of the limit (cgroup v2), counting as the kubelet does: files that were
    read long ago make room.
    """
    with suppress(OSError, ValueError, KeyError):
        limit = int((directory / "memory.max").read_text())
        used = int((directory / "memory.current").read_text())
        lines = (directory / "memory.stat").read_text().splitlines()
        statistics = dict(line.split() for line in lines)
        return max(limit - used + int(statistics["inactive_file"]), 1)
    return None


def _of_machine(file: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        lines = file.read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * _KIB
    return None
