"""Any legal mesh of at most four processes trains any shape as one process does."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from modelscaling.mesh import AXES, Mesh
from modelscaling.plan.legality import broken_rules
from modelscaling.shape import ModelShape
from tests.shared.workloads import make_workload
from tests.trainer.exactness import assert_trained_as_alone, train_on
from tests.trainer.runs import make_run, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.plan import Workload

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 5
BATCH = 12
AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 5 steps."""


@st.composite
def small_shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    return ModelShape(
        layers=draw(st.integers(2, 5)),
        hidden_size=draw(st.sampled_from([12, 20, 30])),
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_size=draw(st.sampled_from([4, 6])),
        feed_forward_size=draw(st.sampled_from([28, 40])),
        vocabulary_size=256,
        context_length=16,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        norm_after=draw(st.booleans()),
        sliding_window=draw(st.sampled_from([None, 5])),
    )


@st.composite
def runs_on_meshes(draw: st.DrawFn) -> tuple[ModelShape, Mesh]:
    """Draw a shape, and one of all meshes of 2 to 4 processes that are legal for it."""
    shape = draw(small_shapes())
    sizes = [
        dict.fromkeys(AXES, 1) | {first: one, second: other}
        for one, other in ((1, 2), (1, 3), (1, 4), (2, 2))
        for first in AXES
        for second in AXES
        if first != second
    ]
    meshes = [
        Mesh(**size, stagesPerProcess=laps)
        for size in sizes
        for laps in ((1, 2) if size["pipeline"] > 1 else (1,))
    ]
    legal = [mesh for mesh in meshes if not [*broken_rules(_workload(shape, mesh), mesh)]]
    # Hypothesis begins with the simplest choices, and there are too few examples to go further.
    chance = random.Random(draw(st.integers(1, 1 << 32)))
    return shape, chance.choice(list(dict.fromkeys(legal)))


def _workload(shape: ModelShape, mesh: Mesh) -> Workload:
    return make_workload(**asdict(shape), replicas=mesh.size, global_batch_size=BATCH)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,  # the same examples every time: each takes seconds
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=runs_on_meshes())
def test_any_legal_mesh_trains_any_shape_as_one_process_does(
    drawn: tuple[ModelShape, Mesh], tmp_path: Path
) -> None:
    shape, mesh = drawn
    note(f"{mesh} with {shape}")
    changes = {f"model__{name}": value for name, value in asdict(shape).items()}
    run = make_run(write_text(tmp_path / "data"), training__global_batch_size=BATCH, **changes)

    [alone] = train_on(Mesh(), run, tmp_path, stop_at_step=STEPS)
    together = train_on(mesh, run, tmp_path, stop_at_step=STEPS)

    assert_trained_as_alone(together, alone, mesh, steps=STEPS, loss_within=AGREEMENT)
