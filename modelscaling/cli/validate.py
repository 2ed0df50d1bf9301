"""`modelscaling validate`: what the API server and the operator would say, without a cluster."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from modelscaling.advice import advise_balance
from modelscaling.api.validation import InvalidSpecError
from modelscaling.byte_size import format_byte_size
from modelscaling.cli.resource import model_scalings, name_of, parse_resource, read_documents
from modelscaling.growth.mode import Exactness, GrowthMode
from modelscaling.growth.trained_model import plan_change
from modelscaling.growth_schedule import resolve_later_plans, resolve_stages
from modelscaling.quantity import format_quantity
from modelscaling.resolve import resolve_configuration, resolve_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from modelscaling.api.validation import Problem
    from modelscaling.shape import ModelShape

_EXAMPLE = """\
example:
  modelscaling validate -f run.yaml && kubectl apply -f run.yaml

exit code: 0 all is valid, 1 something is not, 2 the file cannot be read or has no ModelScaling
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What is said of the mesh that the run would be given."""

    reason: str
    memory_bytes: dict[str, int] | None
    """What its fullest process needs, by part, with their `total`; None for a paused run."""
    rejected: tuple[dict[str, str], ...]
    """Meshes that were not taken, each with its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """What is said of a model that the run grows to."""

    tokens: int
    """How many the run has trained on then."""
    parameters: int
    mesh: str
    inexact: tuple[str, ...]
    """The steps of its growth after which the loss is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is said of one ModelScaling."""

    name: str
    problems: tuple[Problem, ...] = ()
    parameters: int | None = None
    total_steps: int | None = None
    mesh: str | None = None
    plan: PlanReport | None = None
    later: tuple[StageReport, ...] = ()
    """What it grows to by `growth.schedule`."""
    advice: tuple[dict[str, str], ...] = ()
    """What published results say about the numbers, as in `status.advice`."""

    @property
    def is_valid(self) -> bool:
        """Whether it would be accepted."""
        return not self.problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        metavar="FILE",
        help="YAML file; every ModelScaling in it is checked; - is standard input",
    )
    parser.add_argument(
        "--json", action="store_true", help="write one object of JSON to standard output"
    )


def run(options: argparse.Namespace) -> int:
    """Print what would be said of each ModelScaling."""
    documents = model_scalings(options.file, read_documents(options.file))
    reports = [judge(document) for document in documents]
    if options.json:
        print(json.dumps(_as_json(reports)))
    else:
        for report in reports:
            _print(report, options.file)
    return 0 if all(report.is_valid for report in reports) else 1


def judge(document: Mapping[str, Any]) -> Report:
    """Return what would be said of one ModelScaling."""
    name = name_of(document)
    try:
        spec = parse_resource(document).spec
        configuration = resolve_configuration(spec)
        plan = resolve_plan(spec)
        stages = resolve_stages(spec)
        later = zip(pairwise(stages), resolve_later_plans(spec, stages), strict=True)
    except InvalidSpecError as error:
        return Report(name=name, problems=tuple(error.problems))
    advice = advise_balance(configuration)
    return Report(
        name=name,
        parameters=configuration.model.parameters(),
        total_steps=configuration.training.total_steps,
        mesh=str(plan.mesh),
        plan=PlanReport(
            reason=plan.reason,
            memory_bytes=plan.memory.by_part() if plan.memory else None,
            rejected=tuple(
                {"mesh": str(other.mesh), "reason": other.reason} for other in plan.rejected
            ),
        ),
        later=tuple(
            StageReport(
                tokens=stage.tokens,
                parameters=stage.shape.parameters(),
                mesh=str(later_plan.mesh),
                inexact=_inexact_steps(before.shape, stage.shape, configuration.growth),
            )
            for (before, stage), later_plan in later
        ),
        advice=() if advice is None else (advice.model_dump(),),
    )


def _inexact_steps(
    before: ModelShape, after: ModelShape, mode: GrowthMode | None
) -> tuple[str, ...]:
    steps = plan_change(before, after, mode).steps
    return tuple(step.description for step in steps if step.exactness is Exactness.INEXACT)


def _as_json(reports: list[Report]) -> dict[str, Any]:
    return {
        "valid": all(report.is_valid for report in reports),
        "documents": [{"valid": report.is_valid, **asdict(report)} for report in reports],
    }


def _print(report: Report, file: str) -> None:
    for problem in report.problems:
        print(f"error: {file}: {report.name}: {problem}", file=sys.stderr)
    if report.parameters is None or report.plan is None:
        return
    memory = report.plan.memory_bytes
    need = f", about {format_byte_size(memory['total'])} a process" if memory else ""
    print(
        f"{report.name}: valid; {format_quantity(report.parameters)} parameters, "
        f"{report.total_steps} steps, mesh {report.mesh}{need}"
    )
    for stage in report.later:
        print(
            f"{report.name}: from {format_quantity(stage.tokens)} tokens on "
            f"{format_quantity(stage.parameters)} parameters, mesh {stage.mesh}"
            + "".join(f"; inexact: {step}" for step in stage.inexact)
        )
    for advice in report.advice:
        print(f"{report.name}: {advice['reason']}: {advice['message']} ({advice['source']})")
