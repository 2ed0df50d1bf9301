from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.agreement import StepReport
from modelscaling_trainer.guard import Guard
from modelscaling_trainer.snapshot_plan import Partners
from modelscaling_trainer.snapshots import Snapshots
from tests.trainer.parts import make_state
from tests.trainer.ranks import everybody
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    import torch.distributed as dist

    from modelscaling_trainer.state import TrainingState

PARTNERS = Partners(keeper=1, ward=1)
MIB = 1 << 20


class CountedSnapshots(Snapshots):
    """Snapshots of a given size that are only counted."""

    def __init__(self, *, needed: int = MIB, cost: float = 0.5) -> None:
        super().__init__()
        self.taken = 0
        self.is_cleared = False
        self._needed = needed
        self._cost = cost

    def bytes_needed(self, state: TrainingState, partners: Partners) -> int:
        assert state.step >= 0
        assert partners == PARTNERS
        return self._needed

    def take(self, state: TrainingState, partners: Partners, members: dist.ProcessGroup) -> None:
        assert state.step >= 0
        assert partners == PARTNERS
        assert members.size() == 1
        self.taken += 1
        self.seconds = self._cost

    def clear(self) -> None:
        self.is_cleared = True


def make_report(*, snapshot_seconds: float) -> StepReport:
    return StepReport(
        loss_sum=1.0,
        tokens=1,
        batch_sum=1,
        requests=set(),
        gradient_square=1.0,
        own_square=1.0,
        step_seconds=5.0,
        wait_seconds=0.0,
        busy_seconds=0.0,
        snapshot_seconds=snapshot_seconds,
        checkpoint_step=0,
    )


def train(
    snapshots: CountedSnapshots,
    *,
    steps: int,
    partners: Partners | None = PARTNERS,
    free: int | None = None,
    pod_processes: int = 1,
) -> None:
    guard = Guard(
        snapshots,
        partners,
        everybody(),
        pod_processes=pod_processes,
        free_bytes=lambda: free,
    )
    state = make_state(make_run("unused"))
    state.initialise(seed=0)
    for _ in range(steps):
        guard.after_step(state, make_report(snapshot_seconds=guard.snapshot_seconds))


@pytest.mark.usefixtures("group_of_one")
def test_the_first_step_of_a_group_is_followed_by_a_snapshot() -> None:
    snapshots = CountedSnapshots()
    train(snapshots, steps=1)

    assert snapshots.taken == 1


@pytest.mark.usefixtures("group_of_one")
def test_half_a_second_is_spent_on_a_snapshot_every_25_seconds() -> None:
    snapshots = CountedSnapshots(cost=0.5)
    train(snapshots, steps=1 + 3 * 5)

    assert snapshots.taken == 1 + 3


@pytest.mark.usefixtures("group_of_one")
def test_a_group_of_copies_gives_the_memory_of_snapshots_back() -> None:
    snapshots = CountedSnapshots()
    train(snapshots, steps=1, partners=None)

    assert (snapshots.taken, snapshots.is_cleared) == (0, True)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("free", "pod_processes", "takes"),
    [
        pytest.param(20 * MIB, 1, True, id="half of what is free is enough"),
        pytest.param(19 * MIB, 1, False, id="too little is free"),
        pytest.param(20 * MIB, 2, False, id="the pod's processes share it"),
        pytest.param(None, 1, True, id="nobody knows"),
    ],
)
def test_snapshots_are_left_out_where_there_is_no_room_for_them(
    free: int | None, pod_processes: int, *, takes: bool
) -> None:
    snapshots = CountedSnapshots(needed=10 * MIB)
    train(snapshots, steps=3, free=free, pod_processes=pod_processes)

    assert (snapshots.taken > 0, snapshots.is_cleared) == (takes, not takes)
