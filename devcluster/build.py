"""Compile the programs from their Go modules, checked by go.sum.

One `go build` for all of them: it shares the packages that they have in common and links while it
compiles. It takes about 12 minutes on two cores from nothing, and the time to link (20 s) when
Go's cache has the packages, as in a second clone.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError
from devcluster.files import write
from devcluster.progress import say
from devcluster.requirements import ensure_compiler, ensure_go

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from devcluster.layout import Layout

_KUBERNETES_VERSION = re.compile(r"\sk8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)")
_VERSION_PACKAGE = "k8s.io/component-base/version"
# seccomp: without it runc refuses every pod that has a seccomp profile. The others leave all of
# Prometheus' service discoveries out but the one for Kubernetes.
_TAGS = "seccomp,remove_all_sd,enable_kubernetes_sd"
_FLAGS = (
    "-buildvcs=false",
    "-trimpath",
    f"-tags={_TAGS}",
    # Debug information that nobody reads costs a fifth of the time.
    "-gcflags=all=-dwarf=false",
)
_KUBERNETES = "kubernetes"
_PARTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
_REPORT_INTERVAL_S = 15
_ALL_PACKAGES = "about 4,000 when none are cached"


def ensure_binaries(layout: Layout) -> str:
    """Build what is missing or outdated and return the build's key."""
    key = build_key(layout.sources)
    stamp = layout.bin / ".build"
    if stamp.exists() and stamp.read_text() == key:
        return key
    go = ensure_go(layout)
    ensure_compiler()
    say("compiling Kubernetes and its parts (12 minutes from nothing on two cores)")
    layout.bin.mkdir(parents=True, exist_ok=True)
    _build(layout, go)
    for part in _PARTS:
        link = layout.bin / part
        link.unlink(missing_ok=True)
        link.symlink_to(_KUBERNETES)
    # Last: a build that was interrupted goes on where it was.
    write(stamp, key)
    say("compiled")
    return key


def build_key(sources: Path) -> str:
    """Return a digest of all that the binaries are made of."""
    digest = hashlib.sha256(repr(_FLAGS).encode())
    for file in (sources / "go.mod", sources / "go.sum", *sorted(sources.glob("cmd/*/*.go"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def linker_flags(go_mod: str) -> str:
    """Return the flags that tell the binary which version of Kubernetes it is.

    Clients cannot parse the version that it says without.
    """
    found = _KUBERNETES_VERSION.search(go_mod)
    assert found, "go.mod requires k8s.io/kubernetes"
    version, major, minor = found.groups()
    variables = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    return " ".join(
        ["-s -w", *(f"-X {_VERSION_PACKAGE}.{name}={value}" for name, value in variables.items())]
    )


def _build(layout: Layout, go: str) -> None:
    link = f"-ldflags={linker_flags((layout.sources / 'go.mod').read_text())}"
    command = [go, "build", "-v", *_FLAGS, link, "-o", f"{layout.bin}/", "./cmd/...", "tool"]
    # Collecting garbage less often makes the compiler faster, for memory.
    environment = {**os.environ, "GOGC": "400", "GOWORK": "off", "GOTOOLCHAIN": "auto"}
    with subprocess.Popen(
        command,
        cwd=layout.sources,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        problems = _report(process.stderr)
    if process.returncode:
        raise ClusterError("go build failed:\n" + "\n".join(problems[-20:]))


def _report(lines: Iterable[str]) -> list[str]:
    """Say how far it is as the lines come; return those that are not progress."""
    downloaded = compiled = 0
    problems = []
    reported = time.monotonic()
    for line in lines:
        text = line.strip()
        if text.startswith("go: downloading "):
            downloaded += 1
        elif " " in text:
            problems.append(text)
        else:
            compiled += 1
        if time.monotonic() - reported > _REPORT_INTERVAL_S:
            reported = time.monotonic()
            say(f"  {downloaded} modules loaded, {compiled} packages compiled ({_ALL_PACKAGES})")
    return problems
