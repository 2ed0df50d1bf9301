"""How little agents meet, take the state over and train; see `modelscaling.protocol`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelscaling.api.validation import parse_spec
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import (
    AgentState,
    Failure,
    GrowthRejection,
    Progress,
    Resumption,
    StateSource,
)
from modelscaling.resolve import resolve_configuration
from tests.operator.little_agent import LittleAgent, Part
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelscaling.protocol import GroupAssignment

TOTAL_STEPS = 125
"""64k tokens in batches of 8 samples of 64 tokens."""
STEP_S = 0.2
REJECTION = GrowthRejection(
    model=resolve_configuration(parse_spec(make_spec())).model,
    loss_before=2.5,
    loss_after=2.75,
    allowed_rise=0.05,
)
"""Of what the world's runs begin with."""


def make_progress(step: int, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "step": step,
        "total_steps": TOTAL_STEPS,
        "tokens": step * 512,
        "sample_digest": f"digest-{step}",
    }
    return Progress(**{**values, **changes})


@dataclass(slots=True)
class LittleGroup:
    """What the agents that hear each other do together, a step a second."""

    step: int = 0
    """The newest step that was done, or gone back to."""
    total_steps: int = TOTAL_STEPS
    furthest: int = 0
    saved: int = 0
    """The step of the checkpoint, which is written when agents are told to stop."""
    fails_at: int | None = None
    """The step in which the last member's worker dies each time."""
    rejects_layers: int | None = None
    """The number of layers that growth to is taken back."""
    checkpoint_failure: str | None = None
    """Why no checkpoint can be written."""
    barred: set[int] = field(default_factory=set)
    """Numbers of the groups that meet and cannot read what they are to go on with."""
    losses: int = 0
    """How many times steps had to be done again."""
    handed_over: set[int] = field(default_factory=set)
    """Numbers of the groups that have trained."""
    trained: int = 0
    """The newest of them."""
    mesh: str | None = None
    resumption: Resumption | None = None

    def train(self, heard: Mapping[int, LittleAgent], now_s: float) -> Iterator[tuple[int, int]]:
        """Do a step in the group that is complete; yield who ends, with the exit code."""
        trained = 0
        for assignment in _assignments(heard.values()):
            members = _met(assignment.members, assignment, heard)
            leavers: list[LittleAgent] | None = []
            if assignment.generation not in self.handed_over:
                leavers = _met(assignment.leaving, assignment, heard)
            if members is None or leavers is None or assignment.generation in self.barred:
                continue
            trained += 1
            assert trained == 1, "two groups train at a time"
            assert assignment.generation >= self.trained, "an older group trains"
            yield from self._do_step(assignment, members, leavers, now_s)

    def _do_step(
        self,
        assignment: GroupAssignment,
        members: Sequence[LittleAgent],
        leavers: Sequence[LittleAgent],
        now_s: float,
    ) -> Iterator[tuple[int, int]]:
        is_new = any(agent.state is not AgentState.TRAINING for agent in members)
        if is_new and assignment.configuration.model.layers == self.rejects_layers:
            for agent in members:
                agent.state = AgentState.WARM
                agent.growth_rejection = REJECTION
            self.handed_over.add(assignment.generation)
            yield from ((agent.index, ExitCode.DONE) for agent in leavers)
            return
        if is_new:
            self._take_over(assignment, members, leavers, now_s)
            self.handed_over.add(assignment.generation)
            self.trained = assignment.generation
            self.mesh = str(assignment.mesh)
        if self.step + 1 == self.fails_at:
            _die(members)
            return
        self.step += 1
        self.furthest = max(self.furthest, self.step)
        for rank, agent in enumerate(members):
            agent.state = AgentState.TRAINING
            agent.failure = None
            agent.progress = self._progress() if rank == 0 else None
            agent.held = frozenset({self._part(assignment, rank)})
        for agent in leavers:
            yield agent.index, ExitCode.INTERRUPTED if agent.is_leaving else ExitCode.DONE
        if self.step == self.total_steps:
            for agent in members:
                yield agent.index, ExitCode.DONE

    def save(self, agent: LittleAgent) -> None:
        """Save the step that is done, where that can be done."""
        if self.checkpoint_failure is None:
            self.saved = self.step
        agent.progress = self._progress() if agent.is_leader else None

    def _progress(self) -> Progress:
        return make_progress(
            self.step,
            total_steps=self.total_steps,
            checkpoint_step=self.saved or None,
            checkpoint_failure=self.checkpoint_failure,
            resumption=self.resumption,
        )

    def _take_over(
        self,
        assignment: GroupAssignment,
        members: Sequence[LittleAgent],
        leavers: Sequence[LittleAgent],
        now_s: float,
    ) -> None:
        attempt = max(agent.attempt for agent in (*members, *leavers)) + 1
        for agent in (*members, *leavers):
            agent.attempt = attempt
        parts = frozenset().union(*(agent.held for agent in (*members, *leavers)))
        step = max(_newest_whole(parts), self.saved)
        self.losses += step < self.step
        if any(part.step == step for part in parts):
            source = StateSource.MEMORY
        else:
            source = StateSource.CHECKPOINT if step else StateSource.INITIAL
        # Who has nothing knows of nothing.
        self.resumption = Resumption(
            generation=assignment.generation,
            attempt=attempt,
            source=source,
            step=step,
            furthest_step=self.furthest if parts else step,
            stopped_time=now_s - STEP_S if source is StateSource.MEMORY else None,
            resumed_time=now_s,
            loss_before=2.5 if parts else None,
            loss_after=2.25,
        )
        self.step = step

    def _part(self, assignment: GroupAssignment, rank: int) -> Part:
        if assignment.mesh.is_sharded:
            return Part(self.step, rank, len(assignment.members))
        return Part(self.step, 0, 1)


def _die(members: Sequence[LittleAgent]) -> None:
    """Let the last member's worker die; the members are about to meet again."""
    for agent in members:
        agent.state = AgentState.FORMING
    members[-1].worker_failures += 1
    members[-1].failure = Failure(
        exit_code=ExitCode.CRASHED, reason="WorkerDied", message="It always does."
    )


def _assignments(agents: Any) -> list[GroupAssignment]:
    found = {a.generation: a.assignment for a in agents if a.assignment and a.is_in_group}
    return [found[number] for number in sorted(found)]


def _met(
    places: Any, assignment: GroupAssignment, heard: Mapping[int, LittleAgent]
) -> list[LittleAgent] | None:
    """Return the agents of these places; None unless all have come."""
    agents = [heard.get(member.index) for member in places]
    met = [
        agent
        for agent in agents
        if agent is not None and agent.is_in_group and agent.assignment is not None
        if not agent.unreachable
    ]
    met = [agent for agent in met if agent.generation == assignment.generation]
    return met if len(met) == len(places) else None


def _newest_whole(parts: frozenset[Part]) -> int:
    """Return the newest step of which all parts are there; 0 is where every run begins."""
    whole = [
        part.step
        for part in parts
        if all(Part(part.step, other, part.parts) in parts for other in range(part.parts))
    ]
    return max(whole, default=0)
