from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from modelscaling.api.conditions import Reason
from modelscaling.api.status import ModelScalingStatus
from modelscaling.protocol import TerminationReport
from modelscaling_operator.failure import describe_exit, is_failed
from modelscaling_operator.observation import (
    Obstacle,
    PodPhase,
    parse_pod,
    parse_status,
)
from tests.operator.world import make_progress


def body(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "tiny-1",
            "uid": "pod-uid",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"modelscaling.dev/index": "1", "modelscaling.dev/revision": "abc"},
            "ownerReferences": [{"uid": "run-uid", "controller": True}],
            **metadata,
        },
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "image": "trainer:1",
                    "env": [{"name": "MODELSCALING_PROCESSES", "value": "2"}],
                }
            ]
        },
        "status": status or {},
    }


def ended(message: str = "", **terminated: Any) -> dict[str, Any]:
    state = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}
    terminated = {**state, "message": message, **terminated}
    return {
        "phase": "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}],
    }


def test_a_running_pod_is_parsed() -> None:
    pod = parse_pod(body({"phase": "Running", "podIP": "10.0.0.1"}))

    assert pod is not None
    assert pod.live
    assert (pod.index, pod.owner_uid, pod.revision, pod.address) == (
        1,
        "run-uid",
        "abc",
        "10.0.0.1",
    )
    assert (pod.image, pod.processes) == ("trainer:1", 2)


def test_a_pod_that_is_deleted_is_not_live() -> None:
    pod = parse_pod(
        body({"phase": "Running", "podIP": "1"}, deletionTimestamp="2026-01-01T00:00:30Z")
    )

    assert pod is not None
    assert pod.deletion_deadline == datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)
    assert not pod.live


@pytest.mark.parametrize("labels", [None, {}, {"modelscaling.dev/index": "x"}])
def test_a_pod_without_an_index_is_not_an_operators(labels: Any) -> None:
    assert parse_pod(body(labels=labels)) is None


def test_a_report_is_read_from_the_termination_message() -> None:
    report = TerminationReport(generation=3, progress=make_progress(7))
    pod = parse_pod(body(ended(report.model_dump_json())))

    assert pod is not None
    assert pod.exit is not None
    assert pod.exit.report == report


@pytest.mark.parametrize(
    ("status", "failed", "sentence"),
    [
        pytest.param(
            ended("Segmentation fault", exitCode=139),
            True,
            "pod tiny-1 ended with exit code 139 (Error): Segmentation fault",
            id="a crash without a report",
        ),
        pytest.param(
            ended(exitCode=137, reason="OOMKilled"),
            True,
            "pod tiny-1 used more memory than its limit and was killed (exit code 137); raise "
            "resources.limits.memory in spec.template, or lower training.microBatchSize",
            id="out of memory",
        ),
        pytest.param(ended(exitCode=75), False, None, id="told to end"),
        pytest.param(
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on memory.",
            },
            False,
            "pod tiny-1 was taken away: The node was low on memory.",
            id="evicted by the kubelet",
        ),
        pytest.param(
            {
                **ended(exitCode=137),
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "message": "Preempted."}
                ],
            },
            False,
            "pod tiny-1 was taken away: Preempted.",
            id="preempted",
        ),
        pytest.param(
            {"phase": "Failed", "reason": "OutOfcpu", "message": "Not enough cpu."},
            True,
            "pod tiny-1 was refused by its node (OutOfcpu): Not enough cpu.",
            id="refused by its node",
        ),
    ],
)
def test_ends_are_told_apart(status: dict[str, Any], failed: bool, sentence: str | None) -> None:  # noqa: FBT001
    pod = parse_pod(body(status))

    assert pod is not None
    assert is_failed(pod) == failed
    assert sentence is None or describe_exit(pod) == sentence


@pytest.mark.parametrize(
    ("status", "obstacle"),
    [
        pytest.param(
            {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available",
                    }
                ],
            },
            Obstacle(
                reason=Reason.UNSCHEDULABLE,
                message="pod tiny-1 is not scheduled: 0/3 nodes are available",
            ),
            id="no node",
        ),
        pytest.param(
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "trainer",
                        "state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}},
                    }
                ],
            },
            Obstacle(
                reason=Reason.POD_CANNOT_START,
                message="pod tiny-1: ErrImagePull: no such host",
            ),
            id="no image",
        ),
        pytest.param(
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "trainer", "state": {"waiting": {"reason": "ContainerCreating"}}}
                ],
            },
            None,
            id="on its way",
        ),
    ],
)
def test_obstacles_are_read(status: dict[str, Any], obstacle: Obstacle | None) -> None:
    pod = parse_pod(body(status))

    assert pod is not None
    assert pod.phase is PodPhase.PENDING
    assert pod.obstacle == obstacle


@pytest.mark.parametrize("status", [None, {}, {"group": 5}, "text"])
def test_a_status_that_is_not_ours_is_an_empty_one(status: Any) -> None:
    assert parse_status(status) == ModelScalingStatus()
