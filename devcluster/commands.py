"""Run a command of the machine to its end."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 60


def output_of(
    *command: str | Path, environment: dict[str, str] | None = None, timeout_s: float = _TIMEOUT_S
) -> str:
    """Return what a command printed; `ClusterError` with its message when it fails."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{words[0]} is not installed; install the package that has it (iproute2 has ip, "
            f"mount and util-linux have mount, umount and setsid)"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(words)}` was not done after {timeout_s:g} s") from None
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        raise ClusterError(f"`{' '.join(words)}` failed: {said}")
    return result.stdout
