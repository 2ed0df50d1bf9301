from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from modelscaling.api.parallelism import TensorPlacement
from modelscaling.api.training import CompileMode
from modelscaling.mesh import Mesh
from modelscaling.plan.legality import broken_rules
from tests.shared.workloads import make_workload, meshes, shapes

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


@pytest.mark.parametrize(
    ("mesh", "changes", "field", "message"),
    [
        pytest.param(
            Mesh(dataReplicate=2, tensor=4),
            {},
            "parallelism",
            "the mesh dp2×tp4 has 8 processes, not the replicas=4 × processesPerReplica=1 = 4; "
            "change replicas × processesPerReplica to 8, or the axes to a product of 4",
            id="a product that is not the number of processes",
        ),
        pytest.param(
            Mesh(dataReplicate=2, tensor=2),
            {"compile": CompileMode.ALWAYS},
            "training.compile",
            "Always does not go with tensor=2: torch compiles tensor parallelism to other "
            "gradients; set compile to Auto or Never, or tensor to 1",
            id="compiled tensor parallelism",
        ),
        pytest.param(
            Mesh(tensor=4),
            {
                "replicas": 2,
                "processes_per_replica": 2,
                "tensor_placement": TensorPlacement.WITHIN_POD,
            },
            "parallelism.tensor",
            "tensor=4 does not divide processesPerReplica=2, so it would reach across pods; set "
            "tensor to 2, or tensorPlacement to AcrossPods",
            id="tensor across pods",
        ),
        pytest.param(
            Mesh(tensor=4),
            {"heads": 6, "kv_heads": 2, "head_size": 12},
            "parallelism.tensor",
            "tensor=4 does not divide heads=6; set tensor to 2",
            id="heads that cannot be cut",
        ),
        pytest.param(
            Mesh(tensor=4),
            {"heads": 12, "kv_heads": 6, "head_size": 2},
            "parallelism.tensor",
            "tensor=4 does not divide kvHeads=6 (of headSize=2), nor is it a multiple; set tensor "
            "to 2",
            id="key and value heads that are neither cut nor shared evenly",
        ),
        pytest.param(
            Mesh(tensor=8),
            {"replicas": 8, "kv_heads": 1, "head_size": 6, "hidden_size": 48},
            "parallelism.tensor",
            "tensor=8 does not divide kvHeads=1 (of headSize=6), nor is it a multiple; set tensor "
            "to 2",
            id="a key and value head whose rows cannot be cut",
        ),
        pytest.param(
            Mesh(tensor=4),
            {"feed_forward_size": 102},
            "parallelism.tensor",
            "tensor=4 does not divide feedForwardSize=102; set tensor to 2",
            id="a feed-forward that cannot be cut",
        ),
        pytest.param(
            Mesh(tensor=4),
            {"vocabulary_size": 257},
            "parallelism.tensor",
            "tensor=4 does not divide vocabularySize=257; set tensor to 1",
            id="a vocabulary that cannot be cut",
        ),
        pytest.param(
            Mesh(context=2, tensor=4),
            {"replicas": 8, "context_length": 60},
            "parallelism.tensor",
            "tensor=4 does not divide the 30 tokens that a process computes of a sample; set "
            "tensor to 2",
            id="tokens that sequence parallelism cannot cut",
        ),
        pytest.param(
            Mesh(pipeline=4),
            {"layers": 3},
            "parallelism.pipeline",
            "pipeline=4 × stagesPerProcess=1 are 4 stages, more than layers=3; set pipeline to at "
            "most 3",
            id="stages without a layer",
        ),
        pytest.param(
            Mesh(pipeline=4, stagesPerProcess=2),
            {"layers": 6},
            "parallelism.pipeline",
            "pipeline=4 × stagesPerProcess=2 are 8 stages, more than layers=6; set pipeline to at "
            "most 3, or stagesPerProcess to at most 1",
            id="interleaved stages without a layer",
        ),
        pytest.param(
            Mesh(context=4),
            {"context_length": 36},
            "parallelism.context",
            "contextLength=36 is not divisible by 2 × context=4 (each process has a part of the "
            "head and one of the tail); set context to 3 or 6, or contextLength to a multiple of 8",
            id="samples that head and tail do not cut",
        ),
        pytest.param(
            Mesh(dataReplicate=4),
            {"global_batch_size": 6},
            "training.globalBatchSize",
            "6 is not divisible by the data-parallel size 4 (replicas=4 × processesPerReplica=1); "
            "change replicas × processesPerReplica to 3 or 6, or globalBatchSize to a multiple of "
            "4",
            id="a batch that copies cannot share",
        ),
        pytest.param(
            Mesh(dataReplicate=2, dataShard=2, tensor=2),
            {"global_batch_size": 6, "replicas": 8},
            "training.globalBatchSize",
            "6 is not divisible by the data-parallel size 4 (dataReplicate=2 × dataShard=2); "
            "change dataReplicate × dataShard to 3 or 6, or globalBatchSize to a multiple of 4",
            id="a batch that some axes of the mesh cannot share",
        ),
        pytest.param(
            Mesh(dataReplicate=4),
            {"micro_batch_size": 16},
            "training.microBatchSize",
            "microBatchSize=16 does not divide a process' part of the global batch, 8 samples; "
            "set it to one of [1, 2, 4, 8], or leave it out",
            id="a micro batch larger than a part",
        ),
        pytest.param(
            Mesh(pipeline=4),
            {"micro_batch_size": 16},
            "training.microBatchSize",
            "microBatchSize=16 cuts a process' part of the global batch, 32 samples, into 2 micro "
            "batches, not into at least the 4 micro batches that 4 pipeline stages need; set it "
            "to one of [1, 2, 4, 8], or leave it out",
            id="fewer micro batches than stages, as declared",
        ),
        pytest.param(
            Mesh(pipeline=4),
            {"global_batch_size": 3},
            "training.globalBatchSize",
            "globalBatchSize=3 leaves 3 samples to each of 1 data-parallel parts, which do not "
            "make at least the 4 micro batches that 4 pipeline stages need; set globalBatchSize "
            "to a multiple of 4, or lower pipeline or stagesPerProcess",
            id="fewer samples than stages",
        ),
    ],
)
def test_a_rule_that_is_broken_names_value_expectation_and_the_nearest_legal_values(
    mesh: Mesh, changes: dict[str, Any], field: str, message: str
) -> None:
    (problem,) = broken_rules(make_workload(**changes), mesh)

    assert (problem.field, problem.message) == (f"spec.{field}", message)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        pytest.param(
            Mesh(dataShard=3),
            {"replicas": 3, "global_batch_size": 9, "hidden_size": 62},
            id="shards that do not divide the weights",
        ),
        pytest.param(
            Mesh(tensor=8),
            {"replicas": 8, "kv_heads": 2},
            id="more processes than key and value heads",
        ),
        pytest.param(
            Mesh(tensor=2),
            {
                "replicas": 1,
                "processes_per_replica": 2,
                "tensor_placement": TensorPlacement.WITHIN_POD,
            },
            id="tensor within a pod",
        ),
        pytest.param(Mesh(pipeline=3), {"replicas": 3}, id="stages that do not divide the layers"),
        pytest.param(
            Mesh(pipeline=2, stagesPerProcess=2), {"replicas": 2}, id="interleaved stages"
        ),
        pytest.param(Mesh(), {"replicas": 1, "context_length": 63}, id="an odd sample, not cut"),
        pytest.param(
            Mesh(pipeline=2, dataReplicate=2, dataShard=2, context=2, tensor=2),
            {"replicas": 32},
            id="all axes at once",
        ),
    ],
)
def test_what_can_be_laid_out_is_legal(mesh: Mesh, changes: dict[str, Any]) -> None:
    assert [*broken_rules(make_workload(**changes), mesh)] == []


@given(shapes(), meshes())
def test_what_a_message_proposes_for_an_axis_is_legal_for_it(shape: ModelShape, mesh: Mesh) -> None:
    workload = replace(make_workload(replicas=mesh.size), shape=shape)
    for axis in ("tensor", "context"):
        field = f"spec.parallelism.{axis}"
        messages = [p.message for p in broken_rules(workload, mesh) if p.field == field]
        for message in messages:
            proposed = message.partition(f"set {axis} to ")[2].split()[0].rstrip(",")
            mended = replace(mesh, **{axis: int(proposed)})
            others = broken_rules(replace(workload, replicas=mended.size), mended)

            assert field not in {other.field for other in others}
