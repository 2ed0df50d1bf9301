"""`modelscaling train`: the same run as on a cluster, on this machine.

The command line checks and resolves the run; the trainer, a program of its own, takes the
process over.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscaling.api.checkpoint import CheckpointSpec
from modelscaling.api.validation import InvalidSpecError, Problem
from modelscaling.cli.error import invalid
from modelscaling.cli.resource import model_scalings, parse_resource, read_documents
from modelscaling.cli.setting import with_settings
from modelscaling.cli.trainer import become_trainer, require_trainer
from modelscaling.configuration import CheckpointConfiguration
from modelscaling.growth_schedule import resolve_later_plans, resolve_stages
from modelscaling.local_run import TRAINER_MODULE, LocalRun, LocalStage
from modelscaling.resolve import resolve_configuration, resolve_plan

if TYPE_CHECKING:
    from typing import NoReturn

    from modelscaling.api.init_from import RunSource
    from modelscaling.configuration import RunConfiguration
    from modelscaling.shape import ModelShape

_EXAMPLE = """\
example:
  modelscaling train -f run.yaml --processes 2 --set spec.training.tokens=2M --output runs/a

exit code: 0 the run reached its end, 1 it failed, 2 the arguments or the spec are wrong,
130 it was interrupted (and saved, with --output)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "-f",
        "--file",
        required=True,
        metavar="FILE",
        help="YAML file with a ModelScaling (the first one in it); - is standard input",
    )
    parser.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="worker processes, instead of replicas × processesPerReplica",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="spec.PATH=VALUE",
        help="change a field of the spec; may be repeated",
    )
    parser.add_argument(
        "--steps",
        type=_positive,
        metavar="K",
        help="stop after step K; the same command without it goes on from there, with --output",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="save checkpoints here, and go on from the newest one in it; else nothing is saved",
    )
    parser.add_argument(
        "--json", action="store_true", help="write one line of JSON a step to standard output"
    )


def run(options: argparse.Namespace) -> NoReturn:
    """Check and resolve the run, then become the trainer."""
    require_trainer(TRAINER_MODULE)
    become_trainer(TRAINER_MODULE, resolve(options))


def resolve(options: argparse.Namespace) -> LocalRun:
    """Return the run that the arguments stand for.

    Raises:
        UsageError: they, or the file, are wrong.
    """
    document = model_scalings(options.file, read_documents(options.file))[0]
    try:
        resource = parse_resource(_with_options(document, options))
        spec = resource.spec
        stages = resolve_stages(spec)
        plans = (resolve_plan(spec), *resolve_later_plans(spec, stages))
    except InvalidSpecError as error:
        raise invalid(options.file, error.problems) from None
    init_from = spec.model.init_from
    if init_from is not None and init_from.model_scaling is not None:
        raise invalid(options.file, [_of_a_cluster(init_from.model_scaling)])

    def configuration(shape: ModelShape) -> RunConfiguration:
        resolved = resolve_configuration(spec, shape=shape)
        checkpoint = resolved.checkpoint or _default_checkpoint()
        return resolved.model_copy(update={"checkpoint": checkpoint if options.output else None})

    return LocalRun(
        name=resource.name,
        stages=tuple(
            LocalStage(
                tokens=stage.tokens, configuration=configuration(stage.shape), mesh=plan.mesh
            )
            for stage, plan in zip(stages, plans, strict=True)
        ),
        output=options.output and options.output.absolute(),
        stop_at_step=options.steps,
        is_json=options.json,
    )


def _of_a_cluster(source: RunSource) -> Problem:
    return Problem(
        field="spec.model.initFrom.modelScaling",
        message=(
            f"{source.name} is a run of a cluster, and this one is on this machine; give the "
            f"directory of a run as model.initFrom.checkpoint.path"
        ),
    )


def _with_options(document: Mapping[str, Any], options: argparse.Namespace) -> Mapping[str, Any]:
    """Return the document as the arguments change it."""
    spec = document.get("spec")
    if not isinstance(spec, Mapping):
        return document
    changed = with_settings(spec, options.settings)
    # It is for pods: their limits and devices are not this machine's.
    changed.pop("template", None)
    if options.processes:
        changed |= {"replicas": 1, "processesPerReplica": options.processes}
    return {**document, "spec": changed}


def _default_checkpoint() -> CheckpointConfiguration:
    """Return how often to save a run that is to be saved, but does not say how often."""
    fields = CheckpointSpec.model_fields
    return CheckpointConfiguration(
        every_steps=fields["every_steps"].default, keep=fields["keep"].default
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number
