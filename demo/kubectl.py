"""kubectl and helm as the demo calls them: the ones of the devcluster, or those on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_COMMAND_TIMEOUT_S = 300


class ToolError(RuntimeError):
    """A tool that failed; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster to run the demo on."""

    kubeconfig: Path
    binaries: Path | None
    """Where kubectl and helm are; None for those on PATH."""
    prometheus: str | None
    """Address of the Prometheus that scrapes the cluster; None if there is none to ask."""

    @classmethod
    def from_environment(cls, root: Path) -> Cluster:
        """Return the cluster of KUBECONFIG, else the devcluster of the repository at `root`."""
        home = root / ".cluster"
        kubeconfig = Path(os.environ.get("KUBECONFIG") or home / "kubeconfig")
        is_devcluster = kubeconfig.resolve() == (home / "kubeconfig").resolve()
        return cls(
            kubeconfig=kubeconfig,
            binaries=home / "bin" if is_devcluster else None,
            prometheus=os.environ.get("PROMETHEUS_URL")
            or ("http://127.0.0.1:9090" if is_devcluster else None),
        )

    def run(self, tool: str, *arguments: str, stdin: str | None = None) -> str:
        """Run a tool to its end and return what it printed; `ToolError` if it fails."""
        result = subprocess.run(
            [self._path(tool), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_TIMEOUT_S,
            env=self._environment,
        )
        if result.returncode:
            raise ToolError(f"{tool} {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return a Kubernetes object as its JSON; empty if there is none."""
        text = self.run("kubectl", "get", *arguments, "--ignore-not-found", "--output=json")
        content: dict[str, Any] = json.loads(text or "{}")
        return content

    def watch(
        self, kind: str, *arguments: str, timeout_s: float, name: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the Kubernetes objects of a kind, or the one of a name, as they are now and each
        time that one changes, until the timeout.
        """
        # Not as `get KIND NAME`: that is silent about a change between its look and its watch.
        only = [f"--field-selector=metadata.name={name}"] if name else []
        command = [self._path("kubectl"), "get", kind, *only, *arguments, "--watch"]
        command.append("--output=json")
        command.append(f"--request-timeout={timeout_s}s")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=self._environment
        ) as p:
            assert p.stdout is not None
            try:
                yield from _documents(p.stdout)
            finally:
                p.kill()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def _path(self, tool: str) -> str:
        found = shutil.which(tool, path=str(self.binaries) if self.binaries else None)
        if found is None:
            raise FileNotFoundError(
                f"{tool} is not in {self.binaries or 'PATH'}; install it, or unset KUBECONFIG to "
                f"let `make demo` start a cluster of its own"
            )
        return found


def _documents(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of an indented JSON stream: each ends with a brace in the first column."""
    document: list[str] = []
    for line in lines:
        document.append(line)
        if line.startswith("}"):
            yield json.loads("".join(document))
            document.clear()
