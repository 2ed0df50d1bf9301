"""What tests do inside the pods of a run: signals to its workers, questions to its agent."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import Signals

    from tests.live_run import LiveRun

_SIGNAL_WORKER = """
import os, sys
from contextlib import suppress
from pathlib import Path
parents = {}
for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()):
    # Processes end meanwhile.
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
parents.pop(os.getpid())
# The first process is the agent, its child forks the workers.
workers = [pid for pid, above in parents.items() if parents.get(above) == 1]
os.kill(workers[0], int(sys.argv[1]))
print(workers[0])
"""

_WAIT_FOR_ATTEMPT = """
import json, sys, time, urllib.request
from pathlib import Path
from modelscaling.protocol import AGENT_PORT, KEY_FILE, SIGNATURE_HEADER, sign
def status(version):
    path = f"/v1/status?after={version}"
    signature = sign(Path(KEY_FILE).read_bytes(), method="GET", path=path, body=b"")
    url = f"http://127.0.0.1:{AGENT_PORT}{path}"
    request = urllib.request.Request(url, headers={SIGNATURE_HEADER: signature})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
awaited, state = (int(sys.argv[1]), int(sys.argv[2])), sys.argv[3]
found, deadline = status(0), time.monotonic() + 60
# What went wrong is forgotten after the first step that is done since.
while (
    (found["generation"], found["attempt"]) < awaited
    or found["state"] != state
    or (state == "Training" and found["failure"])
):
    assert time.monotonic() < deadline, found
    found = status(found["version"])
"""

_READ_CHECKPOINTS = """
from pathlib import Path
from modelscaling.protocol import CHECKPOINT_MOUNT
from modelscaling_trainer.checkpoint.catalog import find
from modelscaling_trainer.checkpoint.directory import steps_in
steps = sorted(steps_in(Path(CHECKPOINT_MOUNT)))
torn = [step for step in steps if find(Path(CHECKPOINT_MOUNT), step) is None]
assert not torn, torn
print(steps[-1])
"""

_TEAR_CHECKPOINT = """
import os
from pathlib import Path
from modelscaling.protocol import CHECKPOINT_MOUNT
from modelscaling_trainer.checkpoint.directory import name_of, steps_in
newest = max(steps_in(Path(CHECKPOINT_MOUNT)))
[file, *_] = sorted((Path(CHECKPOINT_MOUNT) / name_of(newest)).glob("*.safetensors"))
os.truncate(file, file.stat().st_size // 2)
print(newest)
"""


def signal_worker(run: LiveRun, pod: str, number: Signals) -> None:
    """Send a signal to a worker process of a pod, in the pod."""
    _run_python(run, pod, _SIGNAL_WORKER, str(int(number)))


def wait_for_attempt(
    run: LiveRun, pod: str, attempt: int, *, generation: int = 1, state: str = "Training"
) -> None:
    """Wait until a pod's own agent says that the group has met so often, and what it does now."""
    _run_python(run, pod, _WAIT_FOR_ATTEMPT, str(generation), str(attempt), state)


def check_checkpoints(run: LiveRun) -> None:
    """No checkpoint is torn, and none is lost that the status speaks of."""
    status = run.wait_for(lambda status: status["progress"].get("checkpointStep"))
    first = run.members(status)[0]
    # Training waits, so that it does not end meanwhile.
    signal_worker(run, first, SIGSTOP)
    known = run.get()["status"]["progress"]["checkpointStep"]
    newest = int(_run_python(run, first, _READ_CHECKPOINTS))
    signal_worker(run, first, SIGCONT)

    assert newest >= known > 0


def tear_newest_checkpoint(run: LiveRun, pod: str) -> int:
    """Take half of the newest checkpoint's weights away, and return its step."""
    return int(_run_python(run, pod, _TEAR_CHECKPOINT))


def _run_python(run: LiveRun, pod: str, program: str, *arguments: str) -> str:
    return run.kubectl("exec", pod, "--", "python", "-c", program, *arguments)
