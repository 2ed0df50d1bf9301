from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.api.parallelism import TensorPlacement
from modelscaling.api.status import REJECTED_KEPT
from modelscaling.api.training import ActivationCheckpointing, Precision
from modelscaling.api.validation import InvalidSpecError
from modelscaling.mesh import Mesh
from modelscaling.plan import Rejection, Workload, check_mesh, choose_mesh
from modelscaling.plan.legality import broken_rules
from modelscaling.plan.memory import estimate_memory
from modelscaling.preset import PRESETS
from tests.shared.workloads import make_workload


def _just(mesh: Mesh, **changes: Any) -> Workload:
    """Return a workload whose processes have exactly the memory that `mesh` needs."""
    need = estimate_memory(make_workload(**changes), mesh).total
    return make_workload(device_memory=need, **changes)


@pytest.mark.parametrize(
    ("workload", "mesh"),
    [
        pytest.param(make_workload(), Mesh(dataReplicate=4), id="copies where they fit"),
        pytest.param(make_workload(replicas=1), Mesh(), id="a single process"),
        pytest.param(
            _just(Mesh(dataShard=4), hidden_size=256),
            Mesh(dataShard=4),
            id="shards where copies do not fit",
        ),
        pytest.param(
            make_workload(
                global_batch_size=2,
                processes_per_replica=2,
                replicas=2,
                tensor_placement=TensorPlacement.WITHIN_POD,
            ),
            Mesh(dataReplicate=2, tensor=2),
            id="tensor within a pod where the batch cannot be cut further",
        ),
        pytest.param(
            make_workload(
                global_batch_size=2, replicas=4, tensor_placement=TensorPlacement.WITHIN_POD
            ),
            Mesh(dataReplicate=2, context=2),
            id="context where a pod has no neighbours either",
        ),
        pytest.param(
            make_workload(
                global_batch_size=9,
                context_length=63,
                replicas=6,
                tensor_placement=TensorPlacement.WITHIN_POD,
            ),
            Mesh(pipeline=2, dataReplicate=3),
            id="a pipeline where samples cannot be cut either",
        ),
        pytest.param(
            _just(
                Mesh(dataShard=2, context=2),
                global_batch_size=4,
                micro_batch_size=1,
                tensor_placement=TensorPlacement.WITHIN_POD,
            ),
            Mesh(dataShard=2, context=2),
            id="context where a sample is too long for one process",
        ),
    ],
)
def test_the_mesh_is_the_first_of_the_order_that_can_be_had(workload: Workload, mesh: Mesh) -> None:
    assert choose_mesh(workload).mesh == mesh


def test_a_plan_says_why_and_what_was_not_taken() -> None:
    plan = choose_mesh(_just(Mesh(dataShard=4), hidden_size=256))

    assert plan.reason == (
        "the most preferred that can be had; a process needs about 32.1Mi of 32.1Mi; not dp4 (does "
        "not fit: a process needs about 38.6Mi of 32.1Mi)"
    )
    assert plan.rejected[0] == Rejection(
        mesh=Mesh(dataReplicate=4), reason="does not fit: a process needs about 38.6Mi of 32.1Mi"
    )


def test_meshes_that_would_do_are_named_with_what_they_cost() -> None:
    plan = choose_mesh(make_workload(replicas=2))

    assert plan.reason == (
        "every process holds the whole model, which talks least; a process needs about 36.4Mi"
    )
    assert [(str(other.mesh), other.reason) for other in plan.rejected] == [
        ("fsdp2", "would do, but sharded weights are gathered in every pass, and whole ones fit"),
        ("tp2", "would do, but cutting products talks in every layer, and dp2 does without"),
        (
            "cp2",
            (
                "would do, but cutting samples gathers keys and values in every layer, and dp2 "
                "does without"
            ),
        ),
        ("pp2", "would do, but more pipeline stages idle more, and dp2 does without"),
    ]


def test_where_nothing_is_legal_the_rule_of_the_nearest_mesh_is_told() -> None:
    workload = make_workload(replicas=5, tensor_placement=TensorPlacement.WITHIN_POD)

    with pytest.raises(InvalidSpecError) as caught:
        choose_mesh(workload)

    assert str(caught.value) == (
        "spec.training.globalBatchSize: 32 is not divisible by the data-parallel size 5 "
        "(replicas=5 × processesPerReplica=1); change replicas × processesPerReplica to 4 or 8, "
        "or globalBatchSize to a multiple of 5"
    )


def test_where_nothing_fits_the_mesh_that_needs_least_says_what_by_part() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        choose_mesh(make_workload(replicas=1, device_memory=2**20))

    (problem,) = caught.value.problems
    assert problem.field == "spec.parallelism.deviceMemory"
    assert problem.message == (
        "1Mi a process is less than the 69.5Mi that the mesh single needs by estimate (weights "
        "834Ki, gradients 834Ki, moments 1.63Mi, activations 60.2Mi, logits 6Mi); raise it, cut "
        "the model into more parts, lower training.microBatchSize, or set "
        "training.activationCheckpointing"
    )


def test_a_declared_mesh_that_does_not_fit_is_refused_though_another_would() -> None:
    workload = _just(Mesh(dataShard=4), hidden_size=256)

    assert check_mesh(workload, Mesh(dataShard=4)).mesh == Mesh(dataShard=4)
    with pytest.raises(InvalidSpecError, match="that the mesh dp4 needs by estimate"):
        check_mesh(workload, Mesh(dataReplicate=4))


@st.composite
def _workloads(draw: st.DrawFn) -> Workload:
    return make_workload(
        replicas=draw(st.integers(1, 32)),
        processes_per_replica=draw(st.integers(1, 8)),
        global_batch_size=draw(st.integers(1, 64)),
        tensor_placement=draw(st.sampled_from(TensorPlacement)),
        activation_checkpointing=draw(st.sampled_from(ActivationCheckpointing)),
        device_memory=draw(st.none() | st.integers(2**20, 2**26)),
    )


@settings(deadline=None)
@given(_workloads())
def test_every_chosen_mesh_is_legal_fits_and_uses_all_processes(workload: Workload) -> None:
    copies = Mesh(dataReplicate=workload.processes)
    try:
        plan = choose_mesh(workload)
    except InvalidSpecError:
        with pytest.raises(InvalidSpecError):
            check_mesh(workload, copies)
        return

    assert plan.mesh.size == workload.processes
    assert [*broken_rules(workload, plan.mesh)] == []
    assert plan.memory == estimate_memory(workload, plan.mesh)
    assert workload.device_memory is None or plan.memory.total <= workload.device_memory
    assert len(plan.rejected) <= REJECTED_KEPT
    assert plan.mesh not in {other.mesh for other in plan.rejected}
    assert all(other.reason for other in plan.rejected)
    assert choose_mesh(workload) == plan


def test_thousands_of_processes_are_planned_without_counting_them() -> None:
    workload = make_workload(
        replicas=512,
        processes_per_replica=8,
        global_batch_size=2048,
        tensor_placement=TensorPlacement.WITHIN_POD,
        device_memory=80 * 2**30,
        computes_on_cpu=False,
        precision=Precision.BFLOAT16,
        shape=PRESETS["llama-3.1-70b"],
    )

    assert choose_mesh(workload).mesh == Mesh(dataShard=512, tensor=8)
