"""What our commands and their peers find in their environment when they start."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def compiled_modules() -> Iterator[Mapping[str, str]]:
    """Yield the environment of processes of which all but the first start with modules that were
    compiled before, as in an image, wherever this machine's Python may write them.
    """
    with tempfile.TemporaryDirectory() as name:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        yield {**kept, "PYTHONPYCACHEPREFIX": name}
