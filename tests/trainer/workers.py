"""Real worker processes for tests, driven over a pipe.

They are forked from a server that has imported torch once, so that starting one takes
milliseconds.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.api.training import Precision
from modelscaling.configuration import RunConfiguration
from modelscaling.mesh import Mesh
from modelscaling.protocol import Progress
from modelscaling_trainer import takeover
from modelscaling_trainer.agent.resolver import resolver_environment
from modelscaling_trainer.process_group import all_gather
from modelscaling_trainer.run import Group, Request, Requests, Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

    from torch.distributed import ProcessGroup

DEADLINE_S = 300.0

os.environ.update(resolver_environment(os.environ))  # as an agent does

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "modelscaling_trainer.run",
        "modelscaling_trainer.parallel.pipeline",
        "modelscaling_trainer.parallel.sharding",
        "modelscaling_trainer.parallel.tensor",
    ]
)


@dataclass
class Result:
    """What a worker's training came to."""

    outcome: str | None = None
    error: str | None = None
    message: str = ""
    progress: list[Progress] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [progress.loss or 0.0 for progress in self.progress]

    @property
    def validation_losses(self) -> list[float | None]:
        return [progress.validation_loss for progress in self.progress]

    @property
    def gradient_norms(self) -> list[float | None]:
        return [progress.gradient_norm for progress in self.progress]

    @property
    def digests(self) -> list[str]:
        return [progress.sample_digest for progress in self.progress]


class Worker:
    """One worker process; `train` returns at once and `result` waits."""

    def __init__(self, configuration: RunConfiguration, **options: Any) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self._pipe, other = FORKSERVER.Pipe()
        self.process: ForkServerProcess = FORKSERVER.Process(
            target=_main, args=(other, configuration.model_dump_json(), options), daemon=True
        )
        self.process.start()
        other.close()
        self._result = Result()
        self._heard: Queue[tuple[str, Any]] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take at once what it says: one whose words nobody takes stands still, and its peers wait
        for it.
        """
        with suppress(EOFError, OSError):
            while True:
                self._heard.put(self._pipe.recv())
        self._heard.put(("end of its process", None))

    def train(
        self,
        *,
        rank: int,
        mesh: Mesh,
        port: int | None,
        generation: int = 1,
        attempt: int = 1,
        leavers: int = 0,
        local_rank: int = 0,
        checkpoint_step: int | None = None,
    ) -> int:
        """Start training; return the store's port, which rank 0 tells."""
        self._result = Result()
        place = {"rank": rank, "local_rank": local_rank, "store_port": port, "leavers": leavers}
        number = {"generation": generation, "attempt": attempt, "checkpoint_step": checkpoint_step}
        self._pipe.send(("train", {"mesh": asdict(mesh), **place, **number}))
        return self._until("port") if port is None else port

    def ask(self, request: str, *, after_step: int | None = None) -> None:
        """Ask for something at once. With a step, which is said before it trains: it asks itself as
        soon as it has told that step, so that its group agrees in the next, however slow the test.
        """
        self._pipe.send(("ask", (request, after_step)))

    def reconfigure(self, configuration: RunConfiguration) -> None:
        """Have it train another configuration from its next group on."""
        self._pipe.send(("reconfigure", configuration.model_dump_json()))

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda progress: progress.step >= step)

    def wait_until(self, is_so: Callable[[Progress], bool]) -> None:
        """Wait until the last progress is so."""
        while not self._result.progress or not is_so(self._result.progress[-1]):
            self._until("progress")

    def result(self) -> Result:
        result: Result = self._until("result")
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.join(DEADLINE_S)

    def _until(self, kind: str) -> Any:
        """Take messages until one of a kind; that is an error where training ends before it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                got, content = self._heard.get(timeout=max(deadline - time.monotonic(), 0))
            except Empty:
                raise AssertionError(f"no {kind} within {DEADLINE_S} s") from None
            if got == "progress":
                self._result.progress.append(Progress.model_validate_json(content))
            if got == "result":
                for name, value in content.items():
                    setattr(self._result, name, value)
                content = self._result
            if got == kind:
                return content
            assert got in {"port", "progress"}, f"{got} while a {kind} was awaited: {content}"


def start(count: int, configuration: RunConfiguration, **options: Any) -> list[Worker]:
    return [Worker(configuration, **options) for _ in range(count)]


def train_together(
    workers: list[Worker],
    *,
    mesh: Mesh | None = None,
    generation: int = 1,
    attempt: int = 1,
    pod_size: int = 1,
) -> None:
    """Start training in one group of all workers, ranks in their order, so many to a pod; each
    holds a copy of the model unless a mesh is given. Those that the mesh has no place for only hand
    their state over.
    """
    mesh = mesh or Mesh(dataReplicate=len(workers))
    port: int | None = None
    for rank, worker in enumerate(workers):
        port = worker.train(
            rank=rank,
            mesh=mesh,
            port=port,
            generation=generation,
            attempt=attempt,
            leavers=len(workers) - mesh.size,
            local_rank=rank % pod_size,
        )


def results(workers: list[Worker]) -> list[Result]:
    return [worker.result() for worker in workers]


@dataclass(kw_only=True)
class _Deeds:
    """What a worker does of itself as soon as it has told a step."""

    requests: Requests = field(default_factory=Requests)
    later: list[tuple[int, Request]] = field(default_factory=list)
    """What it asks for, and after which step."""
    dies_after_step: int | None

    def ask(self, request: Request, after_step: int | None) -> None:
        if after_step is None:
            self.requests.ask(request)
        else:
            self.later.append((after_step, request))

    def after(self, step: int) -> None:
        if step == self.dies_after_step:
            os.kill(os.getpid(), signal.SIGKILL)
        for due in [asked for asked in self.later if asked[0] <= step]:
            self.later.remove(due)
            self.requests.ask(due[1])


def _main(pipe: Connection, configuration: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    orders: Queue[dict[str, Any] | str] = Queue()
    deeds = _Deeds(dies_after_step=options.pop("dies_after_step", None))

    def listen() -> None:
        while True:
            try:
                kind, content = pipe.recv()
            except EOFError:
                os._exit(0)
            if kind == "ask":
                request, after_step = content
                deeds.ask(Request(request), after_step)
            else:
                orders.put(content)

    threading.Thread(target=listen, daemon=True).start()
    directory = options.pop("checkpoint_directory", None)
    if options.pop("dies_when_it_has_left", False):
        _die_in_the_second_takeover()
    if options.pop("emulates_bfloat16", False):
        options["choose_dtype"] = _emulated
    run = Run(
        RunConfiguration.model_validate_json(configuration),
        device=torch.device("cpu"),
        scratch=Path(options.pop("scratch")),
        checkpoint_directory=directory and Path(directory),
        **options,
    )
    while True:
        order = orders.get()
        if isinstance(order, str):
            run.reconfigure(RunConfiguration.model_validate_json(order))
        else:
            _train(run, pipe, deeds, order)


def _die_in_the_second_takeover() -> None:
    """Have this process die where it and its second group tell each other that all have the state
    that they need.
    """
    takeovers = itertools.count(1)

    def die_or_exchange(value: dict[str, Any], among: ProcessGroup) -> list[dict[str, Any]]:
        if "idle" in value and next(takeovers) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return all_gather(value, among)

    pytest.MonkeyPatch().setattr(takeover, "all_gather", die_or_exchange)


def _emulated(precision: Precision, _: torch.device) -> torch.dtype:
    """Compute in bfloat16 on a CPU that has no such products too, however slow."""
    return torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32


def _train(run: Run, pipe: Connection, deeds: _Deeds, assignment: dict[str, Any]) -> None:
    result: dict[str, Any] = {"error": None, "outcome": None, "message": ""}
    mesh = Mesh(**assignment.pop("mesh"))
    group = Group(mesh=mesh, store_host="127.0.0.1", **assignment)

    def tell(progress: Progress) -> None:
        pipe.send(("progress", progress.model_dump_json()))
        deeds.after(progress.step)

    try:
        outcome = run.train(
            group,
            requests=deeds.requests,
            on_store_port=lambda port: pipe.send(("port", port)),
            on_progress=tell,
            on_phase=lambda _: None,
        )
        result["outcome"] = outcome.value
    except Exception as error:
        logging.getLogger(__name__).exception("training failed")
        result["error"], result["message"] = type(error).__name__, str(error)
    pipe.send(("result", result))
