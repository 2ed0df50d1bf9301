"""At which stage of its schedule a run should be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelscaling.growth.stages import NOTHING_TRAINED, Stage, Trained, stage_number
from modelscaling.shape import ModelShape

SMALL = ModelShape(
    layers=2,
    hidden_size=64,
    heads=4,
    kv_heads=4,
    head_size=16,
    feed_forward_size=128,
    vocabulary_size=256,
    context_length=64,
    tied_embeddings=True,
)
MIDDLE, LARGE = replace(SMALL, layers=3), replace(SMALL, layers=4)
STAGES = (
    Stage(tokens=0, shape=SMALL),
    Stage(tokens=1000, shape=MIDDLE),
    Stage(tokens=2000, shape=LARGE),
)


@pytest.mark.parametrize(
    ("trained", "number"),
    [
        pytest.param(NOTHING_TRAINED, 0, id="before the first step"),
        pytest.param(Trained(tokens=999, model=SMALL), 0, id="before the first entry"),
        pytest.param(Trained(tokens=1000, model=SMALL), 1, id="at it"),
        pytest.param(Trained(tokens=1000, model=MIDDLE), 1, id="at it, and grown"),
        pytest.param(Trained(tokens=5000, model=SMALL), 2, id="after two that were missed"),
        pytest.param(Trained(tokens=900, model=MIDDLE), 1, id="grown, and gone back since"),
        pytest.param(Trained(tokens=2500, model=MIDDLE), 2, id="grown, and on since"),
        pytest.param(
            Trained(tokens=1500, model=replace(SMALL, layers=8)), 1, id="grown to something else"
        ),
    ],
)
def test_the_stage_follows_from_the_tokens_and_never_falls(trained: Trained, number: int) -> None:
    assert stage_number(STAGES, trained) == number


def test_a_run_without_a_schedule_has_one_stage() -> None:
    assert stage_number(STAGES[:1], Trained(tokens=5000, model=LARGE)) == 0
