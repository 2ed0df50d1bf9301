"""The state of a run: weights, moments and counters, always those of a complete step."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter

from modelscaling.growth.lineage import NO_LINEAGE, Lineage
from modelscaling.growth.trained_model import TrainedModel
from modelscaling.validation_history import Validation, ValidationHistory
from modelscaling_trainer.copies import place_in_copy
from modelscaling_trainer.data.sample_digest import EMPTY_DIGEST
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.model.initial_weights import set_initial_weights
from modelscaling_trainer.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from modelscaling.configuration import EarlyStoppingConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.model_part import ModelPart
    from modelscaling_trainer.optimizer import AdamW

_log = logging.getLogger(__name__)

MODEL = "model"
"""What the weights' names begin with, in checkpoints too."""
NOTHING = -1
"""The step of a process that holds no state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How far a run is; what is in a checkpoint beside the tensors."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    sample_digest: str = EMPTY_DIGEST
    useful_seconds: float = 0.0
    """Wall time of the steps that led here; a step that was lost and redone counts once."""
    started_at: float | None = None
    """When the run's first group formed, seconds since 1970."""
    loss_sum: float = 0.0
    """Sum of the losses of the steps since the last validation, nats a token each."""
    loss_steps: int = 0
    """How many those are."""
    validations: ValidationHistory = field(default_factory=ValidationHistory)

    def after_growth(self) -> Counters:
        """Return those of the model that grew: its losses are another model's, and say nothing of
        how it improves.
        """
        return replace(self, loss_sum=0.0, loss_steps=0, validations=ValidationHistory())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Counters:
        """Return the counters that a checkpoint describes; those of an older version lack some.

        Raises:
            ValueError: they are none.
        """
        return _COUNTERS.validate_python(content)


_COUNTERS = TypeAdapter(Counters)


def best_informed(of_one_state: Iterable[Counters]) -> Counters:
    """Return the first counters that know the validation of their state, if it had one: where a
    peer was lost during that, some ranks may not.
    """
    return min(of_one_state, key=lambda counters: counters.loss_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """One rank's part of the state of a complete step, in this process' memory."""

    counters: Counters
    model: TrainedModel
    mesh: Mesh
    """What a single copy of the state is laid out on."""
    rank: int
    """The rank of that mesh whose part it is."""
    shards: Mapping[str, Shard]
    """Every tensor's shard, named `model.WEIGHT` or `MOMENT.WEIGHT`."""
    is_snapshot: bool = False
    """Whether it is a copy that was put by, and not what is trained."""


class TrainingState:
    """The shards of a run's tensors in this process, and the counters that belong to them."""

    def __init__(self, part: ModelPart, optimizer: AdamW, *, lineage: Lineage = NO_LINEAGE) -> None:
        """Hold nothing yet: weights and moments are filled by one of the methods."""
        self.part = part
        self.optimizer = optimizer
        self.model = TrainedModel(shape=part.shape, lineage=lineage)
        self._counters: Counters | None = None

    @property
    def counters(self) -> Counters:
        """The counters of the last complete step."""
        if self._counters is None:
            raise RuntimeError("the state was read before it was filled, or after a torn step")
        return self._counters

    @property
    def step(self) -> int:
        """The last complete step, or NOTHING."""
        return NOTHING if self._counters is None else self._counters.step

    def shards(self) -> dict[str, Shard]:
        """Return every tensor's shard, named `model.WEIGHT` or `MOMENT.WEIGHT`: names that know no
        mesh.
        """
        weights = self.part.weights
        moments = {
            f"{moment}.{name}": Shard(tensor, weights[name].piece)
            for moment, tensors in self.optimizer.moments().items()
            for name, tensor in tensors.items()
        }
        return {f"{MODEL}.{name}": shard for name, shard in weights.items()} | moments

    def parts(self) -> list[StatePart]:
        """Return what it holds: its part of a state, or nothing."""
        if self._counters is None:
            return []
        mesh, rank = place_in_copy(self.part.mesh, self.part.rank)
        return [
            StatePart(
                counters=self._counters,
                model=self.model,
                mesh=mesh,
                rank=rank,
                shards=self.shards(),
            )
        ]

    @contextmanager
    def changing(self, counters: Counters, *, keeps_tensors: bool = False) -> Iterator[None]:
        """Hold nothing while tensors are changed, and `counters` once that is done. Where no tensor
        is changed, what was held is held all the while.
        """
        if not keeps_tensors:
            self._counters = None
        yield
        self._counters = counters

    def add_useful_seconds(self, seconds: float) -> None:
        """Count the wall time of the step that was just completed."""
        counters = self.counters
        self._counters = replace(counters, useful_seconds=counters.useful_seconds + seconds)

    def add_validation(
        self, loss: float, early_stopping: EarlyStoppingConfiguration | None
    ) -> None:
        """Remember the validation of the step that was just completed."""
        counters = self.counters
        validation = Validation(
            step=counters.step,
            loss=loss,
            training_loss=counters.loss_sum / max(counters.loss_steps, 1),
        )
        self._counters = replace(
            counters,
            loss_sum=0.0,
            loss_steps=0,
            validations=counters.validations.after(
                validation,
                min_delta=early_stopping.min_delta if early_stopping else 0.0,
                is_awaited=early_stopping is not None,
            ),
        )

    def start_clock(self, now: float) -> None:
        """Remember when the run's first group formed, unless that is known."""
        if self.counters.started_at is None:
            self._counters = replace(self.counters, started_at=now)

    def initialise(
        self, seed: int, fill: Callable[[Mapping[str, Shard]], None] | None = None
    ) -> None:
        """Fill with the first weights of a run: draws, unless `fill` sets others.

        Raises:
            CheckpointError: those of `fill` cannot be read.
        """
        with self.changing(Counters()), torch.no_grad():
            if fill is not None:
                fill(self.part.weights)
            else:
                set_initial_weights(self.part.weights, seed=seed, layers=self.part.shape.layers)
            for moment in self.optimizer.moments().values():
                for tensor in moment.values():
                    tensor.zero_()
            self.optimizer.set_steps(0)

    def load(self, fill: Callable[[Mapping[str, Shard]], None], counters: Counters) -> bool:
        """Fill from a checkpoint; return False, and hold nothing, where its files are damaged."""
        self._counters = None
        try:
            fill(self.shards())
        except CheckpointError as error:
            _log.warning("skipping it: %s", error.message)
            return False
        self.optimizer.set_steps(counters.step)
        self._counters = counters
        return True
