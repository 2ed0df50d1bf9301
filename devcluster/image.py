"""The image of every container: one layer with next to nothing in it.

What a container runs is this machine's own programs and the project's virtual environment, which
it sees through the hostroot snapshotter (`cmd/containerd`). The layer holds what has to look
different inside: the directories on the way to them, open to a user that is not root (a home
directory usually is not), and the link to the demo's text, at the same path as in the Dockerfile.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devcluster.commands import output_of
from devcluster.errors import ClusterError
from devcluster.mounts import mount_point_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devcluster.layout import Layout

SANDBOX_IMAGE = "localhost/modelscaling-devcluster-sandbox:dev"
"""Holds a pod's namespaces; its process does nothing."""
_IMAGES: dict[str, list[str]] = {
    "localhost/modelscaling-operator:dev": ["modelscaling-operator"],
    "localhost/modelscaling-trainer:dev": ["modelscaling-agent"],
    SANDBOX_IMAGE: ["sleep", "infinity"],
}
_USER = 65532
_CORPUS = "opt/modelscaling/corpus"
_OCI = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OPEN = stat.S_IROTH | stat.S_IXOTH
_PATHS_SCRIPT = (
    "import os, sys, sysconfig; print(os.path.realpath(sys.executable)); "
    "print(sysconfig.get_path('stdlib')); print(sysconfig.get_path('purelib'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """Where the project's virtual environment and what it is based on are."""

    environment: Path
    interpreter: Path
    """With all links resolved."""
    library: Path
    """The standard library."""
    packages: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that containers must be able to read."""
        return (self.environment / "bin", self.interpreter, self.library, self.packages)


def find_python(layout: Layout) -> Python:
    """Ask the project's interpreter where everything is."""
    executable = layout.environment / "bin/python"
    if not executable.exists():
        raise ClusterError(f"{layout.environment} has no Python in it; run `make install`")
    interpreter, library, packages = output_of(executable, "-I", "-c", _PATHS_SCRIPT).splitlines()
    return Python(
        environment=layout.environment,
        interpreter=Path(interpreter),
        library=Path(library),
        packages=Path(packages),
    )


def check(python: Python) -> None:
    """Raise when containers could not see or read what they need."""
    for path in python.paths:
        point = mount_point_of(path)
        if point != Path("/"):
            raise ClusterError(
                f"{path} is on a file system of its own, mounted at {point}; pods only see the "
                f"one of /. Clone the repository to a directory on / (`df DIRECTORY` tells), use "
                f"a Python that is on it too, or set KUBECONFIG to a cluster of yours"
            )
        if path.is_relative_to("/tmp"):  # noqa: S108 - looked at, not written to
            raise ClusterError(
                f"{path} is in /tmp, and pods have a /tmp of their own; move the repository or the "
                f"Python that .venv is based on to another directory"
            )
        if not path.stat().st_mode & stat.S_IROTH:
            raise ClusterError(
                f"{path} can be read by its owner only, and pods run as another user: "
                f"chmod -R o+rX '{path}'"
            )


def archive(python: Python) -> bytes:
    """Return an OCI archive of the images; the same one for the same paths."""
    layer = _tar(_layer(python))
    blobs = [layer]
    manifests = []
    for name, entrypoint in _IMAGES.items():
        config = _json(_config(python, layer, entrypoint))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": _descriptor("config.v1+json", config),
                "layers": [_descriptor("layer.v1.tar", layer)],
            }
        )
        blobs += [config, manifest]
        annotation = {"annotations": {"io.containerd.image.name": name}}
        manifests.append(_descriptor("manifest.v1+json", manifest) | annotation)
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.index.v1+json",
        "manifests": manifests,
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        **{f"blobs/sha256/{_sha256(blob)}": blob for blob in blobs},
    }
    return _tar(_file(name, content) for name, content in files.items())


def closed_directories(paths: Iterable[Path]) -> list[Path]:
    """Return the directories on the way to `paths` that others may not enter, the outer first.

    Links on the way are followed, and the directories that they lead to count: an entry in the
    layer for a path through a link would put a directory in the link's place.
    """
    real = {way.resolve() for path in paths for way in (path, *path.parents)}
    directories = {d for way in real for d in (way, *way.parents) if d.is_dir()}
    return sorted(d for d in directories if d.stat().st_mode & _OPEN != _OPEN)


def _layer(python: Python) -> list[tuple[tarfile.TarInfo, bytes]]:
    entries = [_directory(d.relative_to("/").as_posix()) for d in closed_directories(python.paths)]
    entries += [_directory(p.as_posix()) for p in reversed(Path(_CORPUS).parents[:-1])]
    link = _entry(_CORPUS, tarfile.SYMTYPE, 0o777)
    link.linkname = str(python.library)
    return [*((entry, b"") for entry in entries), (link, b"")]


def _config(python: Python, layer: bytes, entrypoint: list[str]) -> dict[str, Any]:
    path = f"{python.environment}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "User": f"{_USER}:{_USER}",
            "WorkingDir": "/",
            "Entrypoint": entrypoint,
            # As in the Dockerfile, whose images have the same environment.
            "Env": [
                f"PATH={path}",
                "HOME=/tmp",
                "USER=modelscaling",
                "PYTHONUNBUFFERED=1",
                "PYTHONDONTWRITEBYTECODE=1",
            ],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
    }


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {
        "mediaType": f"{_OCI}.{kind}",
        "digest": f"sha256:{_sha256(content)}",
        "size": len(content),
    }


def _directory(name: str) -> tarfile.TarInfo:
    return _entry(name, tarfile.DIRTYPE, 0o755)


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = _entry(name, tarfile.REGTYPE, 0o644)
    entry.size = len(content)
    return entry, content


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry


def _tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry, content in entries:
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
