"""A checkpoint volume that fails under a run on the cluster, in each of its ways."""

from __future__ import annotations

from contextlib import contextmanager
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from devcluster.commands import output_of
from devcluster.errors import ClusterError
from devcluster.layout import Layout, Node
from devcluster.waiting import wait_until
from modelscaling.protocol import CHECKPOINT_MOUNT
from tests.e2e.in_pods import signal_worker
from tests.e2e.steady import begin, finish, lost_steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed
    from tests.live_run import LiveRun

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]

_EVERY_STEPS = 10
_BETWEEN_SAVES_S = 20.0
_MEMORY = {"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
_FILL = """
from contextlib import suppress
with suppress(OSError), open("filler", "wb", buffering=0) as file:
    while file.write(bytes(1 << 12)):
        pass
"""
_EMPTY = 'import os; os.unlink("filler")'
_REMOVE_ALL = 'import glob, shutil; [shutil.rmtree(path) for path in glob.glob("*")]'


@contextmanager
def _full(run: LiveRun) -> Iterator[None]:
    _on_volume(run, _FILL)
    yield
    _on_volume(run, _EMPTY)


@contextmanager
def _read_only(run: LiveRun) -> Iterator[None]:
    name = f"{run.name}-0"
    pod = run.cluster.get("pod", name, f"--namespace={run.namespace}")
    kubelet = Layout.here().node(Node.named(pod["spec"]["nodeName"])) / "kubelet"
    volume = f"pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/checkpoints"
    wait_until(
        lambda: _becomes_read_only(kubelet / volume),
        what="a moment in which nothing is being saved",
        timeout_s=_BETWEEN_SAVES_S,
    )
    yield
    output_of("mount", "-o", "remount,rw", kubelet / volume)


def _becomes_read_only(path: Path) -> bool:
    """Linux refuses it while a file there is open for writing."""
    try:
        output_of("mount", "-o", "remount,ro", path)
    except ClusterError:
        return False
    return True


def _on_volume(run: LiveRun, script: str) -> None:
    """Run a script in the run's pod, as the user that the trainer is, on the volume."""
    directory = f"import os; os.chdir({CHECKPOINT_MOUNT!r})"
    command = f"{directory}\n{script}"
    run.kubectl("exec", f"{run.name}-0", "--", "python", "-c", command)


def _wait_for_failure(run: LiveRun, message: str) -> None:
    run.wait_for(lambda status: message in status["progress"].get("checkpointFailure", ""))


def _wait_for_save(run: LiveRun, *, after: int) -> int:
    """Return the step of a checkpoint later than a step, once nothing keeps it from being saved."""
    status = run.wait_for(
        lambda status: (
            status["progress"].get("checkpointStep", 0) > after
            and "checkpointFailure" not in status["progress"]
        )
    )
    return int(status["progress"]["checkpointStep"])


def test_a_volume_that_is_full_or_read_only_or_lost_costs_checkpoints_and_no_step(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    kept = {"volume": _MEMORY, "everySteps": _EVERY_STEPS}
    run = begin(cluster, run_namespace, "volume", replicas=1, checkpoint=kept)
    saved = _wait_for_save(run, after=0)

    with _full(run):
        _wait_for_failure(run, "No space left on device")
    saved = _wait_for_save(run, after=saved)
    with _read_only(run):
        _wait_for_failure(run, "Read-only file system")
    saved = _wait_for_save(run, after=saved)
    # The worker waits, so that it does not remove an old checkpoint at the same time.
    signal_worker(run, "volume-0", SIGSTOP)
    _on_volume(run, _REMOVE_ALL)
    signal_worker(run, "volume-0", SIGCONT)
    _wait_for_save(run, after=saved + _EVERY_STEPS)
    status = finish(run, undisturbed)

    assert status["group"]["generation"] == 1
    assert lost_steps(status) == 0
