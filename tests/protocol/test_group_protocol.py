"""The protocol by which groups form, searched over all that may happen in a small world."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.protocol.group_model import (
    MOST_ATTEMPTS,
    SHARDS,
    Decision,
    Flaw,
    Model,
    Phase,
    World,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_STATES = 2_000_000


@dataclass(slots=True)
class _Search:
    """Every state that can be reached, with how it was reached and what can follow."""

    model: Model
    came_from: dict[World, tuple[World, str] | None] = field(default_factory=dict)
    leads_to: dict[World, list[World]] = field(default_factory=dict)

    def run(self) -> World | None:
        """Search breadth first; return the first state that breaks a rule."""
        first = self.model.first()
        self.came_from[first] = None
        waiting = deque([first])
        while waiting:
            world = waiting.popleft()
            if _broken_rule(world):
                return world
            self.leads_to[world] = followers = []
            for transition in self.model.transitions(world):
                followers.append(transition.world)
                if transition.world not in self.came_from:
                    self.came_from[transition.world] = (world, transition.what)
                    waiting.append(transition.world)
            assert len(self.came_from) < _MOST_STATES, "the model is not small any more"
        return None

    def story(self, world: World) -> list[str]:
        """Return what happened until a state."""
        return list(self._back(world))[::-1]

    def _back(self, world: World) -> Iterator[str]:
        step = self.came_from[world]
        while step is not None:
            yield step[1]
            step = self.came_from[step[0]]

    def stuck(self) -> World | None:
        """Return a state from which the newest decision's group can never train again."""
        comes_before: dict[World, list[World]] = {world: [] for world in self.leads_to}
        for world, followers in self.leads_to.items():
            for follower in followers:
                comes_before[follower].append(world)
        hopeful = {
            world for world in self.leads_to if _trains(world) or self._is_at_the_edge(world)
        }
        waiting = deque(hopeful)
        while waiting:
            for world in comes_before[waiting.popleft()]:
                if world not in hopeful:
                    hopeful.add(world)
                    waiting.append(world)
        return next((world for world in self.leads_to if world not in hopeful), None)

    def _is_at_the_edge(self, world: World) -> bool:
        """Whether only another decision helps, which the model does not allow any more: the newest
        group has had all its attempts, or lost a member.
        """
        if world.status.number < self.model.most_decisions:
            return False
        members = [world.pods[pod] for pod in world.status.members]
        never_comes = any(
            p.has_left or p.decision == Decision(self.model.most_decisions, ()) for p in members
        )
        return never_comes or max(p.attempt for p in members) == MOST_ATTEMPTS


def _broken_rule(world: World) -> str:
    """Return the rule of the protocol that a state breaks; empty if it keeps them all."""
    decisions = {(p.decision.number, p.decision) for p in world.pods if p.decision.members}
    if len(decisions) > len({number for number, _ in decisions}):
        return "two pods obey different decisions of the same number"
    held = {offer for pod in world.pods for offer in (*pod.held, *pod.filled)}
    if not world.deaths and any((shard, world.steps) not in held for shard in SHARDS):
        return "a step is lost although nobody died"
    return world.broken


def _trains(world: World) -> bool:
    members = [world.pods[pod] for pod in world.status.members]
    return all(p.decision == world.status and p.phase is Phase.TRAINING for p in members)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            Model(most_deaths=0, most_decisions=3),
            id="three decisions",
            marks=pytest.mark.process,  # a hundred thousand states: too many for a fast test
        ),
        pytest.param(Model(most_deaths=1, most_decisions=2), id="one dies or tears a step"),
    ],
)
def test_whatever_happens_groups_never_mix_no_step_is_lost_and_training_can_go_on(
    model: Model,
) -> None:
    search = _Search(model)

    broken = search.run()

    assert broken is None, f"{_broken_rule(broken)}: {search.story(broken)}"
    stuck = search.stuck()
    assert stuck is None, f"stuck after {search.story(stuck)}"


@pytest.mark.parametrize("flaw", list(Flaw), ids=lambda flaw: flaw.value)
def test_the_search_notices_when_a_rule_is_left_out(flaw: Flaw) -> None:
    search = _Search(Model(most_deaths=1, most_decisions=2, flaw=flaw))

    assert search.run() is not None
