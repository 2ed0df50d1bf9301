"""All that a process holds of its run's state, over one change of group after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.layout import process_stages
from modelscaling_trainer.snapshots import Snapshots
from modelscaling_trainer.state import NOTHING

if TYPE_CHECKING:
    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling_trainer.group import Group
    from modelscaling_trainer.model_part import ModelPart
    from modelscaling_trainer.state import StatePart, TrainingState


class Holdings:
    """The states of this process: the one that it trains, in between two groups also the next, and
    snapshots.

    A group may be lost while its processes take the state over. Some may then know that all have
    it, and have let go of what they had before, and others not. Those keep both, so that whatever
    the others have is whole with one of the two.
    """

    def __init__(self) -> None:
        self._states: list[TrainingState] = []
        self._retired: list[StatePart] = []
        self.snapshots = Snapshots()

    def reusable(self, group: Group, model: TrainedModel) -> TrainingState | None:
        """Return a state of a model whose shards are those of this place in a group, in modules
        that are tied to no process group; None where there is none.
        """
        fitting = (
            state
            for state in self._states
            if state.model == model and _has_same_shards(state.part, group)
        )
        return next(fitting, None)

    def retire(self) -> None:
        """Keep what is held for others to take over, and train none of it again: the settings are
        others from now on.
        """
        self._retired = self.parts()
        self._states, self.snapshots = [], Snapshots()

    def add(self, state: TrainingState) -> None:
        """Hold one more, which may hold nothing yet."""
        self.drop_torn()
        self.drop(state)
        self._states.append(state)

    def drop_torn(self) -> bool:
        """Let go of what holds nothing; return whether there was any."""
        before = len(self._states)
        self._states = [held for held in self._states if held.step != NOTHING]
        return len(self._states) < before

    def keep_only(self, state: TrainingState | None) -> None:
        """Let go of all others: the group has what it needs of them."""
        self._retired = []
        self._states = [] if state is None else [state]

    def drop(self, state: TrainingState) -> None:
        """Let go of one that is not to be trained after all."""
        self._states = [held for held in self._states if held is not state]

    def parts(self) -> list[StatePart]:
        """Return the parts of a state that are whole."""
        trained = [part for state in self._states for part in state.parts()]
        return trained + self._retired + self.snapshots.parts()


def _has_same_shards(held: ModelPart, group: Group) -> bool:
    if held.mesh.is_sharded or group.mesh.is_sharded:
        return False
    return held.mesh.stages == group.mesh.stages and process_stages(
        held.mesh, held.rank
    ) == process_stages(group.mesh, group.rank)
