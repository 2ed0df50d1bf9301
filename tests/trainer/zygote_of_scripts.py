"""A zygote whose children run the Python program that is their first command, with `commands` and
`events` at hand, and end with the exit code that it leaves in `code`.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

from modelscaling_trainer import zygote


def run_script(commands: BinaryIO, events: BinaryIO) -> int:
    program = commands.readline().decode().replace("\\n", "\n")
    names: dict[str, Any] = {"commands": commands, "events": events, "code": 0}
    exec(program, names)
    return int(names["code"])


if __name__ == "__main__":
    sys.exit(zygote.main(run_script))
