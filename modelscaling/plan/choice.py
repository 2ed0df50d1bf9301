"""The choice: the first mesh, in the order of preference, that is legal and fits; and what was not
taken, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from modelscaling.api.status import REJECTED_KEPT
from modelscaling.api.validation import InvalidSpecError, Problem
from modelscaling.byte_size import format_byte_size
from modelscaling.mesh import Mesh
from modelscaling.plan.legality import broken_rules
from modelscaling.plan.memory import MemoryEstimate, estimate_memory
from modelscaling.plan.ranking import family_members, mesh_families, why_later

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.plan.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A mesh that was not taken."""

    mesh: Mesh
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The mesh that a run is given, and why."""

    mesh: Mesh
    reason: str
    memory: MemoryEstimate | None
    """What its fullest process needs; None where the run has no processes."""
    rejected: tuple[Rejection, ...] = ()
    """At most `REJECTED_KEPT`, in the order of preference."""


PAUSED = Plan(mesh=Mesh(), reason="replicas is 0: nothing is laid out", memory=None)


@dataclass(frozen=True, slots=True)
class _Candidate:
    mesh: Mesh
    memory: MemoryEstimate | None
    """None where the mesh is not legal."""
    refusal: str | None
    """Why it cannot be had; None where it can."""


def choose_mesh(workload: Workload) -> Plan:
    """Return the plan of a workload that may have any mesh.

    Raises:
        InvalidSpecError: no mesh is legal, or none fits; it says what would be.
    """
    if workload.processes == 0:
        return PAUSED
    passed: list[_Candidate] = []
    candidates = _candidates(workload)
    for candidate in candidates:
        if candidate.refusal is None and candidate.memory is not None:
            later = islice(candidates, max(REJECTED_KEPT - len(passed), 0))
            return Plan(
                mesh=candidate.mesh,
                reason=_reason(workload, candidate.memory, passed),
                memory=candidate.memory,
                rejected=tuple(
                    _rejection(other, candidate.mesh) for other in (*passed[:REJECTED_KEPT], *later)
                ),
            )
        passed.append(candidate)
    raise InvalidSpecError(_why_none(workload, passed))


def check_mesh(workload: Workload, mesh: Mesh) -> Plan:
    """Return the plan of a workload that declares its mesh.

    Raises:
        InvalidSpecError: the mesh is not legal or does not fit; it names every broken rule.
    """
    if workload.processes == 0:
        return PAUSED
    problems = list(broken_rules(workload, mesh))
    if problems:
        raise InvalidSpecError(problems)
    memory = estimate_memory(workload, mesh)
    if not _fits(workload, memory):
        raise InvalidSpecError([_too_large(workload, mesh, memory)])
    return Plan(mesh=mesh, reason=f"declared; {_need(workload, memory)}", memory=memory)


def _candidates(workload: Workload) -> Iterator[_Candidate]:
    """Yield every mesh in the order of preference; one for all that the same rule forbids."""
    for family in mesh_families(workload):
        problem = next(broken_rules(workload, family), None)
        if problem is not None:
            yield _Candidate(family, None, str(problem))
            continue
        for mesh in family_members(family):
            memory = estimate_memory(workload, mesh)
            fits = _fits(workload, memory)
            refusal = None if fits else f"does not fit: {_need(workload, memory)}"
            yield _Candidate(mesh, memory, refusal)
            if refusal is not None and mesh.dataReplicate == 1:
                break  # sharded over all: what shards less needs more


def _fits(workload: Workload, memory: MemoryEstimate) -> bool:
    return workload.device_memory is None or memory.total <= workload.device_memory


def _need(workload: Workload, memory: MemoryEstimate) -> str:
    limit = workload.device_memory
    bound = "" if limit is None else f" of {format_byte_size(limit)}"
    return f"a process needs about {format_byte_size(memory.total)}{bound}"


def _reason(workload: Workload, memory: MemoryEstimate, passed: list[_Candidate]) -> str:
    need = _need(workload, memory)
    if not passed:
        return f"every process holds the whole model, which talks least; {need}"
    first = passed[0]
    return f"the most preferred that can be had; {need}; not {first.mesh} ({first.refusal})"


def _rejection(candidate: _Candidate, chosen: Mesh) -> Rejection:
    reason = candidate.refusal or why_later(candidate.mesh, chosen)
    return Rejection(mesh=candidate.mesh, reason=reason)


def _why_none(workload: Workload, refused: list[_Candidate]) -> list[Problem]:
    """Return what stands in the way of the mesh that comes nearest."""
    legal = [(found.memory, found.mesh) for found in refused if found.memory is not None]
    if not legal:
        return list(broken_rules(workload, refused[0].mesh))
    memory, mesh = min(legal, key=lambda found: found[0].total)
    return [_too_large(workload, mesh, memory)]


def _too_large(workload: Workload, mesh: Mesh, memory: MemoryEstimate) -> Problem:
    parts = ", ".join(
        f"{part} {format_byte_size(count)}"
        for part, count in memory.by_part().items()
        if part != "total" and count
    )
    assert workload.device_memory is not None
    return Problem(
        field=workload.device_memory_field,
        message=(
            f"{format_byte_size(workload.device_memory)} a process is less than the "
            f"{format_byte_size(memory.total)} that the mesh {mesh} needs by estimate ({parts}); "
            f"raise it, cut the model into more parts, lower training.microBatchSize, or set "
            f"training.activationCheckpointing"
        ),
    )
