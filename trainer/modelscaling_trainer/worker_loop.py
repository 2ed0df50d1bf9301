"""What a worker does from its start to its end: warm up, then train in one group after another."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

from modelscaling.exit_code import ExitCode
from modelscaling_trainer.errors import (
    CheckpointError,
    ConfigurationError,
    DivergedError,
    GroupLostError,
    GrowthRejectedError,
)
from modelscaling_trainer.group import Group
from modelscaling_trainer.waiting import counted_waits
from modelscaling_trainer.worker_protocol import (
    CHECKPOINT_FAILED,
    DataOpened,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    PhaseBegan,
    Prepare,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import OpenedData, Progress
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.request import Outcome, Requests
    from modelscaling_trainer.worker_link import AgentLink, JoinOrder
    from modelscaling_trainer.worker_protocol import Join

_log = logging.getLogger(__name__)


class TrainableRun(Protocol):
    """What the loop needs of `modelscaling_trainer.run.Run`."""

    @property
    def data(self) -> OpenedData:
        """What it trains on."""
        ...

    def reconfigure(self, configuration: RunConfiguration) -> None:
        """Train as another run from the next group on, with the state that is held."""
        ...

    def train(
        self,
        group: Group,
        *,
        requests: Requests,
        on_store_port: Callable[[int], None],
        on_progress: Callable[[Progress], None],
        on_phase: Callable[[str], None],
        on_figures: Callable[[ProcessFigures], None] | None = None,
    ) -> Outcome:
        """Train in one group."""
        ...


def work(link: AgentLink, build_run: Callable[[Prepare], TrainableRun]) -> None:
    """Obey the agent until it ends the process, or the worker has failed and has said why.

    Raises:
        Exception: what no caller has a reaction to; the agent has been told.
    """
    try:
        _obey(link, build_run)
    except ConfigurationError as error:
        link.send(
            WorkerFailed(
                exit_code=ExitCode.CONFIGURATION, reason=error.reason, message=error.message
            )
        )
    except DivergedError as error:
        link.send(
            WorkerFailed(exit_code=ExitCode.DIVERGED, reason="Diverged", message=error.message)
        )
    except CheckpointError as error:
        link.send(
            WorkerFailed(
                exit_code=ExitCode.CRASHED, reason=CHECKPOINT_FAILED, message=error.message
            )
        )
    except Exception as error:
        # Told before the process ends: libraries' threads may keep a dying process for long.
        link.send(
            WorkerFailed(
                exit_code=ExitCode.CRASHED, reason="WorkerFailed", message=_describe(error)
            )
        )
        raise


def _obey(link: AgentLink, build_run: Callable[[Prepare], TrainableRun]) -> NoReturn:
    prepare = link.next_order()
    assert isinstance(prepare, Prepare), f"the first command is {prepare!r}, expected Prepare"
    run = build_run(prepare)
    link.send(DataOpened(data=run.data))
    link.send(Warm())
    while True:
        order = link.next_order()
        assert not isinstance(order, Prepare), "a worker is prepared once"
        if order.join.configuration != prepare.configuration:
            _log.info("the run's configuration has changed")
            prepare = prepare.model_copy(update={"configuration": order.join.configuration})
            run.reconfigure(order.join.configuration)
            link.send(DataOpened(data=run.data))
        _train(link, run, order)


def _train(link: AgentLink, run: TrainableRun, order: JoinOrder) -> None:
    """Train in one group and say how it ended."""
    join = order.join
    generation, attempt = join.generation, join.attempt

    def on_progress(progress: Progress) -> None:
        if join.rank == 0:
            link.send(ProgressMade(generation=generation, attempt=attempt, progress=progress))

    try:
        with counted_waits(), _lost_where_abandoned(order.requests):
            outcome = run.train(
                _group(join),
                requests=order.requests,
                on_store_port=lambda port: link.send(
                    StoreOpened(generation=generation, attempt=attempt, port=port)
                ),
                on_progress=on_progress,
                on_phase=lambda phase: link.send(
                    PhaseBegan(generation=generation, attempt=attempt, phase=phase)
                ),
                on_figures=lambda figures: link.send(
                    FiguresTaken(generation=generation, attempt=attempt, figures=figures)
                ),
            )
    except GroupLostError as error:
        link.send(GroupLost(generation=generation, attempt=attempt, message=error.message))
    except GrowthRejectedError as error:
        link.send(GrowthRejected(generation=generation, attempt=attempt, rejection=error.rejection))
    except CheckpointError as error:
        # All that was trained is still in memory: there may be room when the group meets again.
        link.send(
            GroupLost(
                generation=generation,
                attempt=attempt,
                message=error.message,
                reason=CHECKPOINT_FAILED,
            )
        )
    else:
        link.send(GroupEnded(generation=generation, attempt=attempt, outcome=outcome))


def _group(join: Join) -> Group:
    return Group(
        generation=join.generation,
        attempt=join.attempt,
        mesh=join.mesh,
        leavers=join.leavers,
        rank=join.rank,
        local_rank=join.local_rank,
        store_host=join.store_host,
        store_port=join.store_port,
        checkpoint_step=join.checkpoint_step,
    )


@contextmanager
def _lost_where_abandoned(requests: Requests) -> Iterator[None]:
    """Take whatever goes wrong in a group that is being abandoned as its loss: its connections are
    cut under the feet of whoever uses them, and what that raises is nobody's fault. Only what a
    checkpoint says needs no connection: all ranks hear it at once, and the first to tell its agent
    has the others abandoned.
    """
    try:
        yield
    except (GroupLostError, CheckpointError):
        raise
    except Exception as error:
        if requests.is_abandoned:
            _log.info("an abandoned group ended with an error", exc_info=True)
            raise GroupLostError(_describe(error)) from error
        raise


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
