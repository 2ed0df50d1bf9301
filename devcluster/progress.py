"""What the commands print: each step with the time since the start."""

from __future__ import annotations

import sys
import time

_started = time.monotonic()


def say(line: str) -> None:
    """Print a line about a step, at once."""
    sys.stdout.write(f"[{time.monotonic() - _started:6.1f} s] {line}\n")
    sys.stdout.flush()
