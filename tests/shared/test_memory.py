from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelscaling.api.training import ActivationCheckpointing, Precision
from modelscaling.layout import layout, trained_weights
from modelscaling.mesh import Mesh
from modelscaling.plan.legality import broken_rules
from modelscaling.plan.memory import estimate_memory
from tests.shared.workloads import make_workload, meshes, shapes

if TYPE_CHECKING:
    from modelscaling.plan.workload import Workload
    from modelscaling.shape import ModelShape

LAYER = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 192 + 2 * 64
"""Elements of a layer of the small shape."""
TABLE = 256 * 64
KEPT = 4 * (2 * 64 + 3 * 64 + 2 * 32 + 4 * 192) + 4 * (4 * 64 + 8) + 4 * 8 * 64
"""Bytes that a layer of it keeps for each token in float32 on a CPU, as memory.py states them."""

_EXAMPLES = 100
"""Many of them are given up, so that with fewer Hypothesis would say that too many were."""


def _legal(shape: ModelShape, mesh: Mesh, **changes: Any) -> Workload:
    """Return a workload on which `mesh` is legal, or give the example up."""
    workload = replace(make_workload(replicas=mesh.size, **changes), shape=shape)
    workload = replace(workload, global_batch_size=mesh.data_parallel * mesh.stages * 4)
    assume(next(broken_rules(workload, mesh), None) is None)
    return workload


@settings(deadline=None, max_examples=_EXAMPLES)
@given(shapes(), meshes())
def test_states_are_exactly_those_of_a_process_and_no_process_needs_more(
    shape: ModelShape, mesh: Mesh
) -> None:
    memory = estimate_memory(_legal(shape, mesh), mesh)

    names = {*trained_weights(shape)}
    states = []
    for rank in range(mesh.size):
        sizes = {name: 4 * p.region.elements for name, p in layout(shape, mesh, rank).items()}
        trained = sum(size for name, size in sizes.items() if name in names)
        states.append((sum(sizes.values()), trained, 2 * trained))
    assert (memory.weights, memory.gradients, memory.moments) in states
    assert memory.total >= max(map(sum, states))
    assert mesh.pipeline > 1 or memory.weights == max(weights for weights, _, _ in states)


@pytest.mark.parametrize(
    ("mesh", "changes", "gathered"),
    [
        pytest.param(Mesh(), {}, 0, id="none where the weights are what is computed with"),
        pytest.param(
            Mesh(),
            {"precision": Precision.BFLOAT16},
            2 * (4 * LAYER + TABLE + 64),
            id="a copy of every weight in the compute type",
        ),
        pytest.param(
            Mesh(),
            {
                "precision": Precision.BFLOAT16,
                "activation_checkpointing": ActivationCheckpointing.FULL,
            },
            2 * (LAYER + TABLE + 64),
            id="a copy of one layer where it is made again",
        ),
        pytest.param(
            Mesh(dataShard=4), {}, 4 * (LAYER + TABLE + 64), id="one layer beside what is outside"
        ),
        pytest.param(
            Mesh(dataShard=2, tensor=2),
            {"precision": Precision.BFLOAT16},
            2 * ((LAYER - 2 * 64) // 2 + 2 * 64 + TABLE // 2 + 64),
            id="the tensor axis' part of them",
        ),
        pytest.param(
            Mesh(pipeline=2, dataShard=2),
            {"tied_embeddings": False},
            (4 + 4) * (2 * LAYER + TABLE),
            id="all layers of a stage, and their gradients",
        ),
    ],
)
def test_gathered_weights(
    mesh: Mesh, changes: dict[str, Any], gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscaling.gathering.SMALL_BYTES", 0)
    workload = make_workload(replicas=mesh.size, **changes)

    assert estimate_memory(workload, mesh).gathered == gathered


def test_a_small_model_stays_gathered() -> None:
    memory = estimate_memory(make_workload(replicas=4), Mesh(dataShard=4))

    assert memory.gathered == 4 * (4 * LAYER + TABLE + 64)


@pytest.mark.parametrize(
    ("mesh", "changes", "activations"),
    [
        pytest.param(Mesh(), {}, 32 * 64 * 4 * KEPT, id="every layer for every token"),
        pytest.param(
            Mesh(dataReplicate=2, tensor=2), {}, 16 * 64 * 4 * KEPT // 2, id="a part of each layer"
        ),
        pytest.param(
            Mesh(context=2),
            {},
            32 * 32 * 4 * (KEPT + 4 * 2 * 32),
            id="half of each sample, with the keys and values of all of it",
        ),
        pytest.param(
            Mesh(),
            {"computes_on_cpu": False},
            32 * 64 * 4 * (KEPT - 4 * 8 * 64 - 4 * 2 * 64),
            id="neither probabilities nor normed values on a device",
        ),
        pytest.param(
            Mesh(),
            {"activation_checkpointing": ActivationCheckpointing.FULL},
            32 * 64 * (4 * 4 * 64 + KEPT),
            id="the layers' inputs, and one layer that is computed again",
        ),
        pytest.param(
            Mesh(),
            {"activation_checkpointing": ActivationCheckpointing.SELECTIVE},
            32 * 64 * (4 * (4 * (64 + 2 * 64 + 2 * 64 + 64 + 2 * 192) + 4 * 8) + KEPT),
            id="the results of products, and one layer that is computed again",
        ),
        pytest.param(
            Mesh(pipeline=2, dataReplicate=2),
            {"layers": 5},
            4 * 64 * 3 * 2 * KEPT,
            id="two micro batches of the first stage's three layers",
        ),
        pytest.param(
            Mesh(pipeline=2, stagesPerProcess=2),
            {},
            4 * 64 * 1 * 5 * KEPT,
            id="five of the first process' chunks of one layer",
        ),
    ],
)
def test_activations(mesh: Mesh, changes: dict[str, Any], activations: int) -> None:
    workload = make_workload(replicas=mesh.size, **changes)

    assert estimate_memory(workload, mesh).activations == activations


@pytest.mark.parametrize(
    ("precision", "tensor", "logits"),
    [
        (Precision.FLOAT32, 1, 32 * 64 * 256 * 12),
        (Precision.BFLOAT16, 1, 32 * 64 * 256 * 14),
        (Precision.BFLOAT16, 4, 32 * 64 * 256 * 14 // 4),
    ],
)
def test_logits(precision: Precision, tensor: int, logits: int) -> None:
    workload = make_workload(replicas=tensor, precision=precision)

    assert estimate_memory(workload, Mesh(tensor=tensor)).logits == logits


def test_the_parts_add_up() -> None:
    memory = estimate_memory(make_workload(), Mesh(dataShard=4))

    parts = memory.by_part()

    assert parts.pop("total") == memory.total == sum(parts.values())
    assert set(parts) == {
        "weights",
        "gradients",
        "moments",
        "gathered",
        "activations",
        "logits",
    }


@settings(deadline=None, max_examples=_EXAMPLES)
@given(shapes(), meshes(), st.sampled_from(["dataShard", "tensor"]))
def test_states_do_not_grow_where_more_processes_share_them(
    shape: ModelShape, mesh: Mesh, axis: str
) -> None:
    wider = replace(mesh, **{axis: 2 * getattr(mesh, axis)})
    before = estimate_memory(_legal(shape, mesh, vocabulary_size=24), mesh)
    after = estimate_memory(_legal(shape, wider, vocabulary_size=24), wider)

    assert after.weights <= before.weights or mesh.pipeline > 1
    assert after.activations <= before.activations or axis == "dataShard"


@settings(deadline=None, max_examples=_EXAMPLES)
@given(shapes(), meshes())
def test_what_is_kept_grows_with_the_micro_batch_and_falls_when_all_is_computed_again(
    shape: ModelShape, mesh: Mesh
) -> None:
    small = _legal(shape, mesh, micro_batch_size=1)
    large = replace(small, micro_batch_size=2)
    full = replace(large, activation_checkpointing=ActivationCheckpointing.FULL)
    selective = replace(large, activation_checkpointing=ActivationCheckpointing.SELECTIVE)

    kept = [estimate_memory(w, mesh).total for w in (small, large)]
    again = [estimate_memory(w, mesh).activations for w in (full, selective)]

    assert kept == sorted(kept)
    assert again == sorted(again)
