"""A small model of the protocol by which groups form (docs/decisions/0003), to be searched whole.

Three pods, a state in two shards. Whatever may happen is a `Transition` from one state to another:
messages come late, twice or never (every assignment that was ever sent can be delivered at any
later time), pods die and are replaced, groups break in the middle of a step. A `Flaw` takes one
rule of the protocol away, to see that the search notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_T = TypeVar("_T")

PODS = (0, 1, 2)
SHARDS = (0, 1)
MOST_ATTEMPTS = 2
MOST_STEPS = 1


class Flaw(Enum):
    """A rule that is left out."""

    DECIDES_ON_AN_OLD_STATUS = "a second operator writes its decision whatever the status says now"
    OBEYS_OLD_NUMBERS = "agents obey any assignment that comes"
    LEAVES_BEFORE_THE_OTHERS_ARE_FILLED = "a leaving pod ends once it has met the others"
    ATTEMPTS_START_ANEW = "the first member counts attempts from the start after each break"


class Phase(Enum):
    """Where a pod is in its group."""

    WAITING = "waiting"
    MEETING = "meeting"
    FILLED = "filled"
    TRAINING = "training"


class Decision(NamedTuple):
    """Who trains together, by the operator's number."""

    number: int
    members: tuple[int, ...]
    leaving: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[int, ...]:
        """Those that are told."""
        return (*self.members, *self.leaving)

    def shards_of(self, pod: int) -> tuple[int, ...]:
        """Return what a member holds: the state is cut over all of them."""
        place = self.members.index(pod)
        return tuple(shard for shard in SHARDS if shard % len(self.members) == place)


NOBODY = Decision(0, ())


class Pod(NamedTuple):
    """An agent with its workers."""

    decision: Decision = NOBODY
    """The newest that it obeys."""
    next: Decision = NOBODY
    """A newer one, until its group has come to a step boundary."""
    attempt: int = 0
    phase: Phase = Phase.WAITING
    held: tuple[tuple[int, int], ...] = ()
    """(shard, step) that it holds."""
    filled: tuple[tuple[int, int], ...] = ()
    """The same of the group that it is about to train in; `held` stays until it trains."""
    has_left: bool = False


class World(NamedTuple):
    """All that there is at one time."""

    status: Decision
    """What the object's status says."""
    sent: frozenset[Decision]
    pods: tuple[Pod, ...]
    arrived: frozenset[tuple[int, int, int]] = frozenset()
    """(number, attempt, pod) of those that came to the store of an attempt."""
    handed_over: frozenset[int] = frozenset()
    """Numbers of the decisions whose group has trained, so that nobody who leaves is awaited."""
    steps: int = 0
    """The most steps ever done."""
    deaths: int = 0
    """Pods that died, and steps that only a part of a group took."""
    broken: str = ""
    """The rule that the last transition broke, if one was."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One thing that may happen, and what the world is then."""

    what: str
    world: World


@dataclass(frozen=True, slots=True)
class Model:
    """The protocol, or one with a flaw."""

    most_deaths: int
    most_decisions: int
    flaw: Flaw | None = None

    def first(self) -> World:
        """Return the world in which a group of two trains."""
        begun = Decision(1, (0, 1))
        pods = tuple(
            Pod(decision=begun, attempt=1, phase=Phase.TRAINING, held=((shard, 0),))
            for shard in SHARDS
        )
        return World(
            status=begun,
            sent=frozenset({begun}),
            pods=(*pods, Pod()),
            handed_over=frozenset({1}),
        )

    def transitions(self, world: World) -> Iterator[Transition]:
        """Yield all that may happen next."""
        for transition in self._all(world):
            yield Transition(transition.what, self._without_past(transition.world))

    def _all(self, world: World) -> Iterator[Transition]:
        yield from self._operator_decides(world)
        yield from self._assignments_come(world)
        for pod in PODS:
            if not world.pods[pod].has_left:
                yield from self._pod_acts(world, pod)
                yield from self._pod_fails(world, pod)
        yield from self._groups_step(world)

    def _without_past(self, world: World) -> World:
        """Forget what cannot matter any more, so that there are fewer states."""
        sent = frozenset(
            decision
            for decision in world.sent
            if any(self._is_new(world.pods[pod], decision) for pod in decision.all)
        )
        numbers = {pod.decision.number for pod in world.pods if not pod.has_left}
        numbers |= {decision.number for decision in sent}
        numbers |= {pod.next.number for pod in world.pods}
        return world._replace(
            sent=sent,
            arrived=frozenset(place for place in world.arrived if place[0] in numbers),
            handed_over=world.handed_over & numbers,
        )

    def _is_new(self, agent: Pod, decision: Decision) -> bool:
        """Whether an agent obeys what it is told."""
        if agent.has_left:
            return False
        if self.flaw is Flaw.OBEYS_OLD_NUMBERS:
            return decision not in {agent.decision, agent.next}
        return decision.number > max(agent.decision.number, agent.next.number)

    # The operator

    def _operator_decides(self, world: World) -> Iterator[Transition]:
        """The status is written before anybody is told; telling is up to `_assignments_come`."""
        status = world.status
        numbers = [status.number + 1]
        if self.flaw is Flaw.DECIDES_ON_AN_OLD_STATUS:
            numbers.append(status.number)
        living = [pod for pod in PODS if not world.pods[pod].has_left]
        for number in numbers:
            if number > self.most_decisions:
                continue
            for members in (*combinations(living, 1), *combinations(living, 2)):
                # Whoever may hold state: also pods of a group that was decided and never trained.
                told = status.all
                leaving = tuple(
                    pod
                    for pod in living
                    if pod not in members and (pod in told or world.pods[pod].held)
                )
                decision = Decision(number, members, leaving)
                yield Transition(
                    f"the operator decides {decision}",
                    world._replace(status=decision, sent=world.sent | {decision}),
                )

    def _assignments_come(self, world: World) -> Iterator[Transition]:
        for decision in world.sent:
            for pod in decision.all:
                agent = world.pods[pod]
                if not self._is_new(agent, decision):
                    continue
                told = agent._replace(next=decision)
                if agent.phase is not Phase.TRAINING:
                    told = _obeying(told)
                yield Transition(f"pod {pod} is told {decision}", _set(world, pod, told))

    # The pods

    def _pod_acts(self, world: World, pod: int) -> Iterator[Transition]:
        agent = world.pods[pod]
        match agent.phase:
            case Phase.WAITING:
                yield from self._begins(world, pod)
            case Phase.MEETING:
                yield from self._fills(world, pod)
                yield from self._leaves(world, pod)
            case Phase.FILLED:
                if _have_filled(world, agent):
                    trains = agent._replace(
                        phase=Phase.TRAINING, held=agent.filled, filled=(), next=NOBODY
                    )
                    after = _set(world, pod, trains)
                    numbers = after.handed_over | {agent.decision.number}
                    yield Transition(f"pod {pod} trains", after._replace(handed_over=numbers))

    def _begins(self, world: World, pod: int) -> Iterator[Transition]:
        """The first member begins an attempt; others ask it for one that is newer than theirs."""
        agent = world.pods[pod]
        decision = agent.decision
        if not decision.members:
            return
        attempt = agent.attempt + 1
        if pod == decision.members[0]:
            if self.flaw is Flaw.ATTEMPTS_START_ANEW:
                attempt = 1
        else:
            leader = world.pods[decision.members[0]]
            if leader.decision != decision or leader.attempt < attempt:
                return
            attempt = leader.attempt
        if attempt > MOST_ATTEMPTS:
            return
        place = (decision.number, attempt, pod)
        broken = "a pod came to an attempt twice" if place in world.arrived else ""
        after = _set(world, pod, agent._replace(attempt=attempt, phase=Phase.MEETING))
        yield Transition(
            f"pod {pod} comes to attempt {attempt} of {decision.number}",
            after._replace(arrived=world.arrived | {place}, broken=broken),
        )

    def _fills(self, world: World, pod: int) -> Iterator[Transition]:
        """A member takes its shards of the newest step that those who met hold whole."""
        agent = world.pods[pod]
        decision = agent.decision
        if pod not in decision.members or not self._have_met(world, agent):
            return
        there = [world.pods[other] for other in self._awaited(world, decision)]
        if any((p.decision, p.attempt) != (decision, agent.attempt) for p in there):
            return  # somebody has gone on: its collectives fail, and it breaks
        offers = {offer for p in there for offer in p.held}
        steps = [s for s in range(MOST_STEPS + 1) if all((x, s) in offers for x in SHARDS)]
        step = max(steps, default=0)  # without a whole one it goes back to the checkpoint, step 0
        shards = tuple((shard, step) for shard in decision.shards_of(pod))
        filled = agent._replace(phase=Phase.FILLED, filled=shards)
        yield Transition(f"pod {pod} is filled with step {step}", _set(world, pod, filled))

    def _leaves(self, world: World, pod: int) -> Iterator[Transition]:
        agent = world.pods[pod]
        if pod not in agent.decision.leaving or not self._have_met(world, agent):
            return
        if _have_filled(world, agent) or self.flaw is Flaw.LEAVES_BEFORE_THE_OTHERS_ARE_FILLED:
            yield Transition(
                f"pod {pod} leaves", _set(world, pod, agent._replace(has_left=True, held=()))
            )

    def _awaited(self, world: World, decision: Decision) -> tuple[int, ...]:
        if decision.number in world.handed_over:
            return decision.members
        return decision.all

    def _have_met(self, world: World, agent: Pod) -> bool:
        return all(
            (agent.decision.number, agent.attempt, pod) in world.arrived
            for pod in self._awaited(world, agent.decision)
        )

    def _groups_step(self, world: World) -> Iterator[Transition]:
        """All members of a group do a step, after which all stop if any of them was told to."""
        for decision in {agent.decision for agent in world.pods}:
            members = decision.members
            agents = [world.pods[pod] for pod in members]
            if not members or any(
                a.phase is not Phase.TRAINING or a.decision != decision or a.has_left
                for a in agents
            ):
                continue
            if len({a.attempt for a in agents}) > 1:
                continue
            step = agents[0].held[0][1] + 1
            must_stop = any(a.next.number for a in agents)
            after = world
            if step <= MOST_STEPS:
                for pod in members:
                    after = _hold_step(after, pod, step)
            elif not must_stop:
                continue
            if must_stop:
                for pod in members:
                    after = _set(after, pod, _obeying(after.pods[pod]))
            yield Transition(f"the group {decision.number} does step {step}", after)

    # What goes wrong

    def _pod_fails(self, world: World, pod: int) -> Iterator[Transition]:
        agent = world.pods[pod]
        if agent.phase in {Phase.MEETING, Phase.FILLED}:
            # It keeps what it held and what it was filled with: others may have ended meanwhile.
            lost = agent._replace(phase=Phase.WAITING, held=_union(agent), filled=())
            yield Transition(f"the group of pod {pod} breaks", _set(world, pod, _obeying(lost)))
        if agent.phase is Phase.TRAINING and _is_broken(world, agent):
            yield Transition(f"the group of pod {pod} breaks", _set(world, pod, _obeying(agent)))
        if world.deaths < self.most_deaths:
            died = world._replace(deaths=world.deaths + 1)
            # Another pod, which nothing that was sent before is addressed to.
            fresh = Pod(decision=Decision(world.status.number, ()))
            yield Transition(f"pod {pod} dies and is replaced", _set(died, pod, fresh))
            if agent.phase is Phase.TRAINING and agent.held[0][1] < MOST_STEPS:
                torn = _hold_step(died, pod, agent.held[0][1] + 1)
                yield Transition(f"only pod {pod} takes the step", torn)


def _is_broken(world: World, agent: Pod) -> bool:
    """Whether another member is not in the group any more, which is heard in the end: it died, or
    asked for the next attempt.
    """
    others = (world.pods[pod] for pod in agent.decision.members)
    return any(
        (other.decision, other.attempt) != (agent.decision, agent.attempt)
        or other.phase is Phase.WAITING
        for other in others
    )


def _union(agent: Pod) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({*agent.held, *agent.filled}))


def _obeying(agent: Pod) -> Pod:
    """Return a pod outside of a group, with the newest decision that it was told."""
    if agent.next.number:
        return agent._replace(
            decision=agent.next,
            next=NOBODY,
            attempt=0,
            phase=Phase.WAITING,
            held=_union(agent),
            filled=(),
        )
    return agent._replace(phase=Phase.WAITING)


def _have_filled(world: World, agent: Pod) -> bool:
    """Whether all members of an attempt have their shards: the barrier that ends a takeover."""
    others = (world.pods[pod] for pod in agent.decision.members)
    return all(
        (other.decision, other.attempt) == (agent.decision, agent.attempt)
        and other.phase in {Phase.FILLED, Phase.TRAINING}
        for other in others
    )


def _hold_step(world: World, pod: int, step: int) -> World:
    agent = world.pods[pod]
    held = tuple((shard, step) for shard, _ in agent.held)
    return _set(world, pod, agent._replace(held=held))._replace(steps=max(world.steps, step))


def _set(world: World, pod: int, agent: Pod) -> World:
    return world._replace(pods=_with(world.pods, pod, agent), broken="")


def _with(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
