"""Commands that the trainer carries out: this process becomes it, as the command line never imports
torch.
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


def require_trainer(module: str) -> None:
    """Refuse where the trainer's packages are not installed.

    Raises:
        UsageError: torch, or the package of `module`, is missing.
    """
    for name in ("torch", module.partition(".")[0]):
        if find_spec(name) is None:
            raise UsageError(f"{name} is not installed; run: pip install 'modelscaling[trainer]'")


def become_trainer(module: str, work: Message) -> NoReturn:
    """Replace this process by a module of the trainer, with its work on standard input: signals and
    the exit code are then the trainer's own.
    """
    with tempfile.TemporaryFile() as file:
        file.write(work.model_dump_json().encode())
        file.seek(0)
        os.dup2(file.fileno(), sys.__stdin__.fileno() if sys.__stdin__ else 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606
