"""Programs that outlive the command that starts them, found again without pid files.

Each is started with a mark in its environment: whose it is, its name, and a fingerprint of how
it was started. `/proc` is the only record, so it cannot be stale: not after SIGKILL, not after an
interrupted start, not after the machine was switched off, and no reused pid is ever mistaken
for one of ours. Children inherit the mark (containerd's shims do), so nothing gets lost either.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError
from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MARK = b"MODELSCALING_DEVCLUSTER="
_SEPARATOR = "|"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_TIMEOUT_S = 5
_KILL_TIMEOUT_S = 20
_LOG_TAIL_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that has to run: how it is started, and what it depends on."""

    name: str
    """Its binary's name; for one of several, with what it belongs to: `kubelet@node-0`."""
    binaries: Path
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    """Files that it reads only when it starts."""
    build: str = ""
    """Which build its binary is of."""
    listens: tuple[tuple[str, int], ...] = ()
    """Addresses and ports that must be free for it."""
    is_ready: Callable[[], bool] = field(default=lambda: True, compare=False)

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line."""
        return (str(self.binaries / self.name.partition("@")[0]), *self.arguments)

    def fingerprint(self) -> str:
        """Return a digest of everything it was started with; another one means: start it anew."""
        digest = hashlib.sha256(repr((self.argv, self.build)).encode())
        for path in self.inputs:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that carries a mark, ours or that of another checkout."""

    pid: int
    started: int
    """In clock ticks since boot: with the pid it is an identity."""
    home: Path
    name: str
    fingerprint: str
    is_main: bool
    """Whether it is the program itself and not a child of it."""


def all_marked() -> list[Process]:
    """Return every marked process of the machine, the oldest first."""
    found = (_read(int(entry)) for entry in os.listdir("/proc") if entry.isdecimal())  # noqa: PTH208
    return sorted((p for p in found if p), key=lambda process: (process.started, process.pid))


def running(home: Path) -> dict[str, Process]:
    """Return the programs of a checkout that run, by name."""
    programs: dict[str, Process] = {}
    for process in all_marked():
        # The oldest counts: a child looks like its parent between fork and exec.
        if process.is_main and process.home == home:
            programs.setdefault(process.name, process)
    return programs


def start(program: Program, *, home: Path, log: Path) -> Process:
    """Start a program in a session of its own and return its process."""
    log.mkdir(parents=True, exist_ok=True)
    mark = _SEPARATOR.join((str(home), program.name, program.fingerprint()))
    # An environment of its own: neither a proxy nor a secret of the caller's shell gets in.
    environment = {
        "PATH": f"{program.binaries}:{_SYSTEM_PATH}",
        "HOME": "/nonexistent",
        _MARK.decode().rstrip("="): mark,
    }
    with (log / f"{program.name}.log").open("ab") as output:
        # setsid forks and is done at once, so the program is nobody's child to wait for.
        subprocess.run(
            ["setsid", "--fork", *program.argv],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
        )
    return wait_until(
        lambda: running(home).get(program.name),
        what=f"the start of {program.name}",
        timeout_s=_START_TIMEOUT_S,
        hint=lambda: log_tail(log, program.name),
    )


def await_ready(program: Program, *, home: Path, log: Path, timeout_s: float) -> None:
    """Return when the program says it is ready; raise at once when it has ended instead."""

    def is_ready() -> bool:
        if program.is_ready():
            return True
        if program.name not in running(home):
            raise ClusterError(f"{program.name} ended. {log_tail(log, program.name)}")
        return False

    wait_until(
        is_ready,
        what=f"readiness of {program.name}",
        timeout_s=timeout_s,
        hint=lambda: log_tail(log, program.name),
    )


def log_tail(log: Path, name: str) -> str:
    """Return where a program's log is and its last lines."""
    path = log / f"{name}.log"
    try:
        lines = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except FileNotFoundError:
        return ""
    return f"Its log is {path}; it ends:\n" + "\n".join(f"  {line[:300]}" for line in lines)


def kill(processes: Iterable[Process]) -> None:
    """Kill these processes, and nothing that has taken over the pid of one; wait for their end."""
    with contextlib.ExitStack() as stack:
        handles = [handle for process in processes for handle in _killed(process, stack)]
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ClusterError(
                    f"a process has not ended {_KILL_TIMEOUT_S} s after SIGKILL; "
                    f"look for state D in `ps -eo pid,stat,args` and run this again"
                )


def _killed(process: Process, stack: contextlib.ExitStack) -> Iterator[int]:
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    stack.callback(os.close, handle)
    # Only now, with the handle held, the pid cannot become somebody else's.
    now = _read(process.pid)
    if now is None or now.started != process.started:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    yield handle


def _read(pid: int) -> Process | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if _MARK not in environment:
            return None
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        # The name in parentheses may hold blanks; field 22 is the 20th after it.
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return parse(pid, started, environment, command)


def parse(pid: int, started: int, environment: bytes, command: bytes) -> Process | None:
    """Return what the environment and the command line of a process say; None without a mark."""
    for variable in environment.split(b"\0"):
        value = variable.removeprefix(_MARK)
        if value == variable or value.count(_SEPARATOR.encode()) < 2:  # noqa: PLR2004
            continue
        home, name, fingerprint = os.fsdecode(value).rsplit(_SEPARATOR, 2)
        argv0 = os.fsdecode(command.partition(b"\0")[0])
        return Process(
            pid=pid,
            started=started,
            home=Path(home),
            name=name,
            fingerprint=fingerprint,
            is_main=argv0 == f"{home}/bin/{name.partition('@')[0]}",
        )
    return None
