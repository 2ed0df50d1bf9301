"""The process of a pod: `modelscaling-agent`.

Everything it needs is in its environment and in the files that the operator mounts
(`modelscaling.protocol`); its exit code (`modelscaling.exit_code`) and its termination message
tell the operator how it ended.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from modelscaling.exit_code import ExitCode


def main() -> int:
    """Run the agent until its work is done; return the container's exit code."""
    # The kernel drops signals that a container's first process does not handle, and the imports
    # take a second: a pod deleted meanwhile would otherwise stay for its whole grace period.
    signal.signal(signal.SIGTERM, _end_before_the_start)
    from modelscaling_trainer.agent.service import serve  # noqa: PLC0415

    return serve()


def _end_before_the_start(*_: object) -> NoReturn:
    sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
