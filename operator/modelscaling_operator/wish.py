"""What the spec asks for, resolved; or why it cannot be had."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import Reason
from modelscaling.api.validation import InvalidSpecError, parse_spec
from modelscaling.growth.stages import NOTHING_TRAINED, stage_number
from modelscaling.growth_schedule import resolve_later_plans, resolve_stages
from modelscaling.resolve import resolve_configuration, resolve_plan
from modelscaling_operator.merge import TemplateError
from modelscaling_operator.pod import pod_manifest, pod_revision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling.configuration import RunConfiguration
    from modelscaling.growth.mode import GrowthMode
    from modelscaling.growth.stages import Stage, Trained
    from modelscaling.plan import Plan
    from modelscaling.shape import ModelShape
    from modelscaling_operator.identity import RunIdentity

_HOST_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A spec that can be run."""

    spec: ModelScalingSpec
    configuration: RunConfiguration
    plan: Plan
    revision: str
    """Digest of what the spec says about pods."""
    stages: tuple[Stage, ...]
    """The shapes that the model has one after the other."""
    stage: int
    """Which of them it should have now."""
    refusal: Rejection | None = None
    """Why the declared model is not had, and the configuration has another one."""
    _smaller_plans: dict[int, Plan | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def next_stage(self) -> Stage | None:
        """What the model grows to next by itself."""
        return next(iter(self.stages[self.stage + 1 :]), None)

    def is_current(self, trained: Trained) -> bool:
        """Whether it is still what the spec asks for, of a run that has trained so much."""
        return stage_number(self.stages, trained) == self.stage

    def plan_for(self, replicas: int) -> Plan | None:
        """Return the plan for as many pods as there are; None if no mesh is legal for them."""
        if replicas == self.spec.replicas:
            return self.plan
        if replicas not in self._smaller_plans:
            self._smaller_plans[replicas] = _plan_or_none(
                self.spec, replicas, self.configuration.model
            )
        return self._smaller_plans[replicas]

    def with_growth(self, growth: GrowthMode | None, tolerance: float | None) -> Wish:
        """Return the same wish but for how its model may grow."""
        wished = {"growth": growth, "growth_tolerance": tolerance}
        return replace(self, configuration=self.configuration.model_copy(update=wished))

    def keeping(self, shape: ModelShape, refusal: Rejection) -> Wish:
        """Return the wish with another model than the declared one, and why that is not had.

        Raises:
            InvalidSpecError: the rest of the spec does not go with that model.
        """
        return replace(
            self,
            configuration=resolve_configuration(self.spec, shape=shape),
            plan=resolve_plan(self.spec, shape=shape),
            refusal=refusal,
            _smaller_plans={},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a spec cannot be run."""

    reason: Reason
    message: str


def _plan_or_none(spec: ModelScalingSpec, replicas: int, shape: ModelShape) -> Plan | None:
    try:
        return resolve_plan(spec, replicas=replicas, shape=shape)
    except InvalidSpecError:
        return None


def resolve_wish(
    run: RunIdentity, spec: Mapping[str, Any], trained: Trained = NOTHING_TRAINED
) -> Wish | Rejection:
    """Return what a spec asks for, of a run that has trained so much; a `Rejection` names the
    field, the value and the fix.
    """
    if not _HOST_NAME.fullmatch(run.name):
        return Rejection(
            reason=Reason.INVALID_SPEC,
            message=(
                f"metadata.name={run.name} is not a host name, and pods are called NAME-INDEX; "
                f"use lower-case letters, digits and '-', and begin with a letter"
            ),
        )
    try:
        parsed = parse_spec(spec)
        stages = resolve_stages(parsed)
        stage = stage_number(stages, trained)
        shape = stages[stage].shape
        wish = Wish(
            spec=parsed,
            configuration=resolve_configuration(parsed, shape=shape),
            plan=resolve_plan(parsed, shape=shape),
            revision=pod_revision(parsed),
            stages=stages,
            stage=stage,
        )
        # For their errors alone, as is the pod: every one has the same template.
        resolve_later_plans(parsed, stages, after=stage)
        pod_manifest(run, parsed, 0, image="image", pull_policy="IfNotPresent")
    except InvalidSpecError as error:
        return Rejection(reason=Reason.INVALID_SPEC, message=str(error))
    except TemplateError as error:
        return Rejection(reason=Reason.INVALID_TEMPLATE, message=str(error))
    return wish
