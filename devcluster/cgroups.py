"""A cgroup for each node's pods, with cgroup v1 or v2.

In both a directory is one, so they are made and removed as such. With v1 there is a hierarchy for
each controller, and the same path in all of them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError
from devcluster.layout import CGROUP
from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
_NEEDED = ("cpu", "memory", "pids")
_EMPTY_TIMEOUT_S = 20


def create(path: str) -> None:
    """Make the cgroup `path`, and its ancestors, in every hierarchy."""
    if _is_v2():
        _create_v2(path)
        return
    for root in _hierarchies():
        parent = root
        for part in Path(path).parts:
            directory = parent / part
            directory.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                # A new cpuset has neither processors nor memory, and takes no process without.
                if (parent / file).exists() and not (directory / file).read_text().strip():
                    (directory / file).write_text((parent / file).read_text())
            parent = directory


def kill(path: str) -> None:
    """Kill every process in the cgroup `path` and below it, and wait until none is left."""

    def is_empty() -> bool:
        pids = _pids(path)
        for pid in pids:
            # The kernel lists only what is in the cgroup now, so none of these is another's.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(
        is_empty,
        what=f"the end of all processes in the cgroup {path}",
        timeout_s=_EMPTY_TIMEOUT_S,
        hint=lambda: f"Still there: {sorted(_pids(path))}; look for state D in `ps -eo pid,stat`",
    )


def remove(path: str) -> None:
    """Remove the cgroup `path` with all below it; it must be empty."""
    for directory in _directories(path):
        with suppress(FileNotFoundError):
            directory.rmdir()


def left() -> list[str]:
    """Return the cgroups that are still there."""
    return [f"cgroup {root / CGROUP}" for root in _hierarchies() if (root / CGROUP).exists()]


def check() -> None:
    """Raise when this machine's cgroups cannot be used."""
    if not _hierarchies():
        raise ClusterError(f"there are no cgroups at {_ROOT}; use a machine that has them mounted")
    names = (
        (_ROOT / "cgroup.controllers").read_text().split()
        if _is_v2()
        else [root.name for root in _hierarchies()]
    )
    missing = [name for name in _NEEDED if not any(name in n.split(",") for n in names)]
    if missing:
        raise ClusterError(
            f"the kernel lacks the cgroup controllers {', '.join(missing)}, which a kubelet needs; "
            f"enable them (cgroup_enable=memory on the kernel's command line)"
        )


def _is_v2() -> bool:
    return (_ROOT / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    if _is_v2():
        return [_ROOT]
    if not _ROOT.is_dir():
        return []
    # Links such as cpu -> cpu,cpuacct lead to the same hierarchy.
    return [d for d in sorted(_ROOT.iterdir()) if d.is_dir() and not d.is_symlink()]


def _create_v2(path: str) -> None:
    available = (_ROOT / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name in available)
    directory = _ROOT
    for part in Path(path).parts:
        (directory / "cgroup.subtree_control").write_text(wanted)
        directory /= part
        directory.mkdir(exist_ok=True)
    # The kubelet looks for controllers in the node's cgroup, and passes them on itself.
    (directory / "cgroup.subtree_control").write_text(wanted)


def _directories(path: str) -> Iterator[Path]:
    """Yield the cgroup's directories, each before the one that holds it."""
    for root in _hierarchies():
        for directory, _, _ in os.walk(root / path, topdown=False):
            yield Path(directory)


def _pids(path: str) -> set[int]:
    pids: set[int] = set()
    for directory in _directories(path):
        # ENODEV: removed since. EOPNOTSUPP: a threaded cgroup, whose parent lists the processes.
        with suppress(OSError):
            pids.update(map(int, (directory / "cgroup.procs").read_text().split()))
    return pids
