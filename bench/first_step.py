"""From the start of a process to its first step done, and the most memory that it takes.

Ours is the command `modelscaling train`: an agent, its zygote and the worker that this has forked;
the peer is the smallest script that does the same step, `python -m bench.hugging_face`. Both are
started anew in each turn. Memory is the peak of every process of the command, added up, read from
/proc after the third step; a page that several of them hold, as a worker and its zygote do, counts
once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import TYPE_CHECKING

from bench.case import model_spec
from bench.ours import write_text
from bench.processes import children
from modelscaling.api.modelscaling import API_VERSION, KIND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.case import Case
    from modelscaling.api.training import Precision

_MEMORY_STEP = 3
_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Start:
    """What the start of one command took."""

    seconds: float
    peak_bytes: int


def time_starts(case: Case, precision: Precision, *, rounds: int) -> Mapping[str, list[Start]]:
    """Start each in turns; the first turn of each, which fills the disk cache, is not counted."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        commands = {
            "ours": _our_command(case, precision, directory),
            "transformers": [sys.executable, "-m", "bench.hugging_face", case.name, precision],
        }
        environment = {**os.environ, "XDG_CACHE_HOME": name}
        starts: dict[str, list[Start]] = {side: [] for side in commands}
        for _ in range(rounds + 1):
            for side, command in commands.items():
                starts[side].append(_start(command, environment))
    return {side: taken[1:] for side, taken in starts.items()}


def _our_command(case: Case, precision: Precision, directory: Path) -> list[str]:
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "bench"},
        "spec": {
            "model": model_spec(case.shape),
            "data": {"text": {"path": str(write_text(directory))}, "tokenizer": "Byte"},
            "training": {
                "tokens": "100M",
                "globalBatchSize": case.batch,
                "precision": precision.value,
                "compile": "Never",
            },
        },
    }
    path = directory / "run.json"
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "modelscaling.cli.main", "train", f"--file={path}"]
    return [*command, "--processes=1", "--json"]


def _start(command: Sequence[str], environment: Mapping[str, str]) -> Start:
    """Start a command that writes a line for each step, and end it after a few.

    Raises:
        RuntimeError: it ended, or was ended for being late, before those steps.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # Reading a line cannot time out; the end of the process ends it.
    watchdog = Timer(_DEADLINE_S, process.kill)
    watchdog.start()
    try:
        for number, _ in enumerate(process.stdout, start=1):
            if number == 1:
                seconds = time.perf_counter() - began
            if number == _MEMORY_STEP:
                return Start(seconds, sum(map(_peak_bytes, _family(process.pid))))
        raise RuntimeError(f"{command}: ended before step {_MEMORY_STEP}; see its error above")
    finally:
        watchdog.cancel()
        for pid in _family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    return [pid, *(descendant for child in children(pid) for descendant in _family(child))]


def _peak_bytes(pid: int) -> int:
    """Return a process' proportional share of what it holds, and by how much more it once held."""
    now = _sizes(pid, "smaps_rollup")
    return now["Pss"] + _sizes(pid, "status")["VmHWM"] - now["Rss"]


def _sizes(pid: int, file: str) -> Mapping[str, int]:
    """Return all sizes in a file of /proc about a process, bytes."""
    lines = [line.split() for line in Path(f"/proc/{pid}/{file}").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
