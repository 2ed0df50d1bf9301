"""`modelscaling-operator`: the operator as a process."""

from __future__ import annotations

import asyncio
import os
import sys

from modelscaling_operator.application import serve
from modelscaling_operator.log import set_up_logs
from modelscaling_operator.settings import parse_settings


def main() -> None:
    """Serve runs until a signal comes."""
    settings = parse_settings(sys.argv[1:], os.environ)
    set_up_logs(settings.log_level)
    # kopf asks who runs it, and a uid without an entry in /etc/passwd has no name.
    os.environ.setdefault("USER", "modelscaling")
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
