"""A generated file: where it is, and what makes its content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file whose content is a function of the source code."""

    path: str
    """Where it is, relative to the root of the repository."""

    render: Callable[[], str]
    """Return its content."""

    def is_current(self, root: Path) -> bool:
        """Whether the file in the tree is what would be written."""
        file = root / self.path
        return file.is_file() and file.read_text(encoding="utf-8") == self.render()

    def write(self, root: Path) -> bool:
        """Write the file, unless it is current; return whether it was written."""
        if self.is_current(root):
            return False
        file = root / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.render(), encoding="utf-8")
        return True
