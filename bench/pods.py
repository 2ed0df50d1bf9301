"""A job of our pods on this machine, without checkpoints; the benchmark is its operator.

It decides as the operator does: a pod is given up once a member has lost it and it does not answer
either. What the operator's writes to the API server take comes on top on a cluster.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from bench.ours import make_configuration, write_text
from bench.outage import Outage
from bench.pod import RUN_UID, Pod
from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling.protocol import AgentState, GroupAssignment
from modelscaling_operator.agents import MISSED_TIMEOUT_S
from modelscaling_operator.presence import CONFIRMED_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from bench.case import Case
    from modelscaling.api.training import Precision
    from modelscaling.protocol import AgentStatus, Progress, Resumption

_DEADLINE_S = 120.0
_SETTLED_STEPS = 3
"""What a new group does before the next thing happens to it."""
_POLL_S = 0.2
"""Times are the trainer's own; to look more often would only cost it."""
_WARM_POLL_S = 0.05
"""A pod that has warmed up joins at once."""
_WATCH_S = 30.0
_ASK_AGAIN_S = 0.25
"""The operator's pause where something is about to happen (`Policy.forming_poll_s`)."""

_T = TypeVar("_T")


@contextmanager
def our_pods(
    case: Case, precision: Precision, directory: Path, environment: Mapping[str, str]
) -> Iterator[Pods]:
    """Start a job of two pods, wait until it trains, and end all its processes at the end.
    `directory` is empty.
    """
    job = Pods(case, precision, directory, environment)
    try:
        job.begin()
        yield job
    finally:
        job.end()


class Pods:
    """The job; see `bench.outage.Job` for what its methods do."""

    def __init__(
        self, case: Case, precision: Precision, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self._configuration = make_configuration(case, precision, write_text(directory))
        self._directory = directory
        self._environment = environment
        self._pods: list[Pod] = []
        self._started = 0
        self._generation = 0
        self._number = (0, 0)
        """Of the group that was seen to begin last."""
        self._steps = 0

    def begin(self) -> None:
        """Start two pods, and wait until they train."""
        for _ in range(2):
            self._start_pod(size=2)
        for pod in self._pods:
            self._wait_until_warm(pod)
        self._form(Mesh(dataReplicate=2))
        self._wait_for_resumption()

    def end(self) -> None:
        """Kill everything."""
        while self._pods:
            self._pods.pop().end()

    def steps(self) -> int:
        """Return how many steps the job has done."""
        progress = self._progress()
        self._steps = max(self._steps, progress.step if progress else 0)
        return self._steps

    def kill_a_worker(self, pod: int) -> None:
        """Kill a pod's worker, if it has one just now, and don't wait."""
        worker = self._pods[pod].worker()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)

    def kill_worker(self) -> Outage:
        """Kill the last pod's worker."""
        failed_time = time.time()
        self.kill_a_worker(-1)
        return self._wait_for_group(failed_time)

    def join(self) -> tuple[Outage, float]:
        """Start a pod, and form a group with it once it is warm."""
        pod = self._start_pod(size=len(self._pods) + 1)
        self._wait_until_warm(pod)
        self._form(Mesh(dataReplicate=len(self._pods)))
        resumption = self._wait_for_resumption()
        return _planned(resumption), resumption.resumed_time - pod.started_time

    def leave(self) -> Outage:
        """Form a group without the last pod, which hands over what it holds, and see it end."""
        pod = self._pods.pop()
        try:
            self._form(Mesh(dataReplicate=len(self._pods)), leaving=pod)
            outage = self._wait_for_group()
            code = pod.wait_for_exit()
        finally:
            pod.end()
        if code != ExitCode.DONE:
            raise RuntimeError(f"the pod that left ended with {code}\n{pod.last_log()}")
        return outage

    def kill_pod(self) -> Outage:
        """Kill the last pod's processes, and form a group without it as soon as it is lost."""
        return self._lose(signal.SIGKILL)

    def lose_node(self) -> Outage:
        """Stop the last pod's processes, and form a group without it as soon as it is lost."""
        return self._lose(signal.SIGSTOP)

    def shard(self) -> Outage:
        """Form a group of the same pods on another mesh."""
        self._form(Mesh(dataShard=len(self._pods)))
        return self._wait_for_group()

    def _lose(self, number: signal.Signals) -> Outage:
        pod = self._pods.pop()
        failed_time = time.time()
        pod.mark.send(number)
        try:
            self._wait_until_lost(pod)
            self._form(Mesh(dataReplicate=len(self._pods)))
            return self._wait_for_group(failed_time)
        finally:
            pod.end()

    # What the operator does

    def _start_pod(self, *, size: int) -> Pod:
        pod = Pod(
            self._started,
            configuration=self._configuration,
            mesh=Mesh(dataReplicate=size),
            directory=self._directory / f"pod-{self._started}",
            environment=self._environment,
        )
        self._started += 1
        self._pods.append(pod)
        return pod

    def _form(self, mesh: Mesh, *, leaving: Pod | None = None) -> None:
        self._generation += 1
        leavers = [leaving] if leaving else []
        assignment = GroupAssignment(
            run_uid=RUN_UID,
            generation=self._generation,
            members=tuple(pod.member for pod in self._pods),
            mesh=mesh,
            configuration=self._configuration,
            leaving=tuple(pod.member for pod in leavers),
        )
        for pod in [*self._pods, *leavers]:
            pod.assign(assignment)

    def _wait_until_lost(self, pod: Pod) -> None:
        """Wait for two witnesses: the first member, and the operator itself."""
        deadline = time.monotonic() + _DEADLINE_S
        status = self._first.status()
        while pod.index not in status.lost or not _is_silent(pod):
            if time.monotonic() > deadline:
                raise TimeoutError(self._describe(f"pod {pod.index} was not lost in time"))
            status = self._first.status(after=status.version, timeout_s=_WATCH_S)

    # What it sees

    @property
    def _first(self) -> Pod:
        return self._pods[0]

    def _progress(self) -> Progress | None:
        try:
            return self._first.status().progress
        except OSError:
            return None

    def _wait_until_warm(self, pod: Pod) -> AgentStatus:
        def warm() -> AgentStatus | None:
            try:
                status = pod.status()
            except OSError:  # it does not listen yet
                return None
            return status if status.state is AgentState.WARM else None

        return self._wait_for(warm, f"pod {pod.index} did not warm up", poll_s=_WARM_POLL_S)

    def _wait_for_group(self, failed_time: float | None = None) -> Outage:
        resumption = self._wait_for_resumption()
        if failed_time is None:
            return _planned(resumption)
        return Outage(
            seconds=resumption.resumed_time - failed_time, steps_again=_steps_again(resumption)
        )

    def _wait_for_resumption(self) -> Resumption:
        """Wait until a group has begun and settled that was not there yet at the last call."""

        def resumption() -> Resumption | None:
            progress = self._progress()
            resumption = progress.resumption if progress else None
            if resumption is None or resumption.generation < self._generation:
                return None
            return resumption if _number(resumption) > self._number else None

        found = self._wait_for(resumption, f"generation {self._generation} did no new first step")
        self._number = _number(found)
        self._settle(from_step=found.step)
        return found

    def _settle(self, *, from_step: int) -> None:
        goal = from_step + _SETTLED_STEPS
        self._wait_for(lambda: self.steps() >= goal or None, f"step {goal} was not reached")

    def _wait_for(
        self, look: Callable[[], _T | None], otherwise: str, *, poll_s: float = _POLL_S
    ) -> _T:
        deadline = time.monotonic() + _DEADLINE_S
        while (found := look()) is None:
            if any(pod.process.poll() is not None for pod in self._pods):
                raise RuntimeError(self._describe("a pod has ended"))
            if time.monotonic() > deadline:
                raise TimeoutError(self._describe(f"{otherwise} within {_DEADLINE_S:.0f} s"))
            time.sleep(poll_s)
        return found

    def _describe(self, what: str) -> str:
        logs = "\n".join(f"pod {pod.index}: {pod.last_log()}" for pod in self._pods)
        return f"ours: {what}\n{logs}"


def _planned(resumption: Resumption) -> Outage:
    if resumption.stopped_time is None:
        raise RuntimeError(f"no process that goes on had trained before: {resumption}")
    return Outage(
        seconds=resumption.resumed_time - resumption.stopped_time,
        steps_again=_steps_again(resumption),
    )


def _number(resumption: Resumption) -> tuple[int, int]:
    return resumption.generation, resumption.attempt


def _steps_again(resumption: Resumption) -> int:
    return resumption.furthest_step - resumption.step


def _is_silent(pod: Pod) -> bool:
    """Whether nobody listens there, or no question is answered until the operator is convinced."""
    asked = time.monotonic()
    while True:
        try:
            pod.status(timeout_s=MISSED_TIMEOUT_S)
        except ConnectionRefusedError:
            return True
        except OSError:
            if time.monotonic() - asked >= CONFIRMED_S:
                return True
            time.sleep(_ASK_AGAIN_S)
        else:
            return False
