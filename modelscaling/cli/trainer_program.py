"""The programs of the trainer, which the command line starts and does not import: it works without
PyTorch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING

from modelscaling.cli.error import UsageError

if TYPE_CHECKING:
    from typing import NoReturn

    from modelscaling.configuration import Message


def check_is_installed() -> None:
    """Refuse to go on where the trainer or PyTorch is missing.

    Raises:
        UsageError: one of them is.
    """
    for module in ("torch", "modelscaling_trainer"):
        if find_spec(module) is None:
            raise UsageError(f"{module} is not installed; run: pip install 'modelscaling[trainer]'")


def become(module: str, request: Message) -> NoReturn:
    """Replace this process by a module of the trainer that reads a request on standard input:
    signals and the exit code are then its own.
    """
    with tempfile.TemporaryFile() as file:
        file.write(request.model_dump_json().encode())
        file.seek(0)
        os.dup2(file.fileno(), sys.__stdin__.fileno() if sys.__stdin__ else 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606
