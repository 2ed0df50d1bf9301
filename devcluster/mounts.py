"""The mounts below the cluster's directories."""

from __future__ import annotations

from pathlib import Path

from devcluster.commands import output_of
from devcluster.layout import RUN_DIRECTORY, Node

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_OCTAL_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))


def mount_points() -> list[Path]:
    """Return the machine's mount points in the order in which they were mounted."""
    return [_unescaped(line.split()[4]) for line in _MOUNT_TABLE.read_text().splitlines()]


def create(node: Node) -> None:
    """Mount the tmpfs of a node's containerd, if it is not.

    An overlay over `/` needs its upper directory on another file system. It holds containers'
    own files, of which there are few, as their root is read-only.
    """
    if node.run in mount_points():
        return
    node.run.mkdir(parents=True, exist_ok=True)
    output_of("mount", "-t", "tmpfs", "-o", "size=1g,mode=0711", "devcluster", node.run)


def remove_below(*directories: Path) -> None:
    """Unmount everything below these directories, the latest first, and what is used as well."""
    for point in reversed(below(*directories)):
        output_of("umount", "--lazy", "--no-canonicalize", point)


def below(*directories: Path) -> list[Path]:
    """Return the mount points in these directories."""
    return [p for p in mount_points() if any(p.is_relative_to(d) for d in directories)]


def left(home: Path) -> list[str]:
    """Return the mounts that are still there."""
    return [f"mount {point}" for point in below(RUN_DIRECTORY, home)]


def mount_point_of(path: Path) -> Path:
    """Return where the file system that holds `path` is mounted."""
    real = path.resolve()
    return max((p for p in mount_points() if real.is_relative_to(p)), key=lambda p: len(p.parts))


def _unescaped(text: str) -> Path:
    for escape, character in _OCTAL_ESCAPES:
        text = text.replace(escape, character)
    return Path(text)
