"""How many threads each worker computes with, so that the pod's cores are used and not crowded.

OpenMP's threads spin while they wait for each other. On a core that another process needs too,
that costs far more than it gains, so they sleep wherever the machine may be shared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_THREADS = "OMP_NUM_THREADS"
_WAIT_POLICY = "OMP_WAIT_POLICY"
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")


def openmp_environment(
    given: Mapping[str, str], *, cores: int, processes: int, shares_machine: bool
) -> dict[str, str]:
    """Return OpenMP's variables for a worker; what the user has set stays."""
    wanted = {_THREADS: str(max(1, cores // processes))}
    if shares_machine or processes > 1:
        wanted[_WAIT_POLICY] = "passive"
    return {name: value for name, value in wanted.items() if name not in given}


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and its cgroup's CPU limit."""
    cores = _affinity()
    limits = list(cgroup_limits(_CGROUP_ROOT, _read(_CGROUP_OF_PROCESS)))
    return max(1, min([cores, *(int(limit) for limit in limits)]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_limits(root: Path, of_process: str) -> Iterator[float]:
    """Yield the CPU limits, in cores, of the process' cgroup and of those above it.

    Inside a container the cgroup's own files are usually mounted at the root, whatever
    `/proc/self/cgroup` says; paths that do not exist there are passed over.
    """
    for line in of_process.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            below = root / path.lstrip("/")
            for directory in (below, *below.parents):
                if directory.is_relative_to(root):
                    yield from parse_cpu_max(_read(directory / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for directory in (root / "cpu" / path.lstrip("/"), root / "cpu"):
                quota = _read(directory / "cpu.cfs_quota_us").strip()
                period = _read(directory / "cpu.cfs_period_us").strip()
                yield from parse_cpu_max(f"{quota} {period}")


def parse_cpu_max(text: str) -> Iterator[float]:
    """Yield the limit, in cores, that `QUOTA PERIOD` stands for; nothing where there is none."""
    match text.split():
        case [quota, period] if quota.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
