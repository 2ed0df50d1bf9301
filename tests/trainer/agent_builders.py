"""Runs, groups and messages for the tests of the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.validation import parse_spec
from modelscaling.mesh import Mesh
from modelscaling.protocol import (
    GroupAssignment,
    GrowthRejection,
    Member,
    OpenedData,
    Progress,
    StopMode,
    StopRequest,
)
from modelscaling.resolve import resolve_configuration
from modelscaling_trainer.agent.placement import Placement, place
from modelscaling_trainer.figures import ProcessFigures
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration

RUN_UID = "0b6c1a7e"


def make_configuration(**changes: Any) -> RunConfiguration:
    """Return the small run with changes such as `training__tokens=512`."""
    return resolve_configuration(parse_spec(make_spec(**changes)))


def make_assignment(
    *processes: int,
    generation: int = 1,
    run_uid: str = RUN_UID,
    configuration: RunConfiguration | None = None,
    leaving: int = 0,
) -> GroupAssignment:
    """Return a group of pods 0, 1, … with so many processes each, of which the last ones leave."""
    pods = tuple(
        Member(index=index, address=f"10.0.0.{index + 1}", processes=count)
        for index, count in enumerate(processes)
    )
    members = pods[: len(pods) - leaving]
    return GroupAssignment(
        run_uid=run_uid,
        generation=generation,
        members=members,
        mesh=Mesh(dataReplicate=sum(member.processes for member in members)),
        configuration=configuration or make_configuration(),
        leaving=pods[len(members) :],
    )


def make_placement(*processes: int, index: int = 0, **changes: Any) -> Placement:
    """Return the place of pod `index` in such a group."""
    return place(make_assignment(*processes, **changes), index=index, processes=processes[index])


def make_stop(
    mode: StopMode = StopMode.SUSPEND, *, generation: int = 1, run_uid: str = RUN_UID
) -> StopRequest:
    """Return a request to stop."""
    return StopRequest(run_uid=run_uid, generation=generation, mode=mode)


def make_data(digest: str = "c0ffee") -> OpenedData:
    """Return what a worker of the small run says of its data."""
    configuration = make_configuration()
    return OpenedData(
        data=configuration.data,
        vocabulary_size=configuration.model.vocabulary_size,
        digest=digest,
    )


def make_rejection() -> GrowthRejection:
    """Return why the growth of the small run is taken back."""
    return GrowthRejection(
        model=make_configuration().model, loss_before=2.5, loss_after=3.0, allowed_rise=0.05
    )


def make_progress(step: int = 7, **changes: Any) -> Progress:
    """Return what rank 0 says after a step."""
    fields: dict[str, Any] = {
        "step": step,
        "total_steps": 125,
        "tokens": step * 512,
        "sample_digest": "c0ffee",
        "loss": 5.25,
        "step_seconds": 0.25,
        "tokens_per_second": 2048.0,
        "mfu_ratio": 0.5,
        "goodput_ratio": 0.875,
        "scaling_efficiency_ratio": 0.9375,
        "gradient_noise_scale": 32.0,
    }
    return Progress(**(fields | changes))


def make_figures(step: int = 1, **changes: Any) -> ProcessFigures:
    """Return what a process measured of itself in a step."""
    fields: dict[str, Any] = {
        "data_wait_seconds": 0.5,
        "peer_wait_seconds": 0.25,
        "step_skew_seconds": 0.0625,
        "communication_ratio": 0.125,
        "peak_memory_bytes": 1024,
    }
    return ProcessFigures(step=step, **fields | changes)
