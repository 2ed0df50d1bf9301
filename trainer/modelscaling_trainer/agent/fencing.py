"""Whether an agent obeys a message: only its own run's, only the newest number."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.placement import NotAMemberError, Placement, place

if TYPE_CHECKING:
    from modelscaling.protocol import GroupAssignment, StopRequest
    from modelscaling_trainer.agent.facts import Facts


class Verdict(StrEnum):
    """What becomes of a message."""

    OBEYED = "Obeyed"
    REPEATED = "Repeated"
    """It was obeyed before; nothing is done."""
    TURNED_AWAY = "TurnedAway"
    """Its number is not newer, or the agent ends."""
    OTHER_RUN = "OtherRun"
    NOT_A_MEMBER = "NotAMember"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict, its reason for people, and the place in the group where there is one."""

    verdict: Verdict
    message: str = ""
    placement: Placement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who an agent is."""

    run_uid: str
    index: int
    processes: int


def judge_assignment(facts: Facts, assignment: GroupAssignment, identity: Identity) -> Judgement:
    """Return whether the agent forms the group."""
    if assignment.run_uid != identity.run_uid:
        return _other_run(assignment.run_uid, identity)
    if assignment.generation <= facts.generation:
        return _not_newer(assignment, facts)
    if facts.is_failed or facts.stop_mode:
        return Judgement(verdict=Verdict.TURNED_AWAY, message="the agent is stopping")
    try:
        placement = place(assignment, index=identity.index, processes=identity.processes)
    except NotAMemberError as error:
        return Judgement(verdict=Verdict.NOT_A_MEMBER, message=str(error))
    return Judgement(verdict=Verdict.OBEYED, placement=placement)


def judge_stop(facts: Facts, request: StopRequest, identity: Identity) -> Judgement:
    """Return whether the agent stops."""
    if request.run_uid != identity.run_uid:
        return _other_run(request.run_uid, identity)
    if request.generation < facts.generation:
        return _old(request.generation, facts)
    if facts.stop_mode is request.mode:
        return Judgement(verdict=Verdict.REPEATED)
    return Judgement(verdict=Verdict.OBEYED)


def _other_run(run_uid: str, identity: Identity) -> Judgement:
    return Judgement(
        verdict=Verdict.OTHER_RUN,
        message=f"the message is for run {run_uid!r}, this is an agent of {identity.run_uid!r}",
    )


def _not_newer(assignment: GroupAssignment, facts: Facts) -> Judgement:
    if assignment.generation < facts.generation:
        return _old(assignment.generation, facts)
    if assignment.digest() == facts.digest:
        return Judgement(verdict=Verdict.REPEATED)
    return Judgement(
        verdict=Verdict.TURNED_AWAY,
        message=f"generation {assignment.generation} was obeyed with another content",
    )


def _old(generation: int, facts: Facts) -> Judgement:
    return Judgement(
        verdict=Verdict.TURNED_AWAY,
        message=f"generation {generation} is older than {facts.generation}",
    )
