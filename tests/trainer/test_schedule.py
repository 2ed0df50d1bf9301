from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.api.training import ScheduleShape
from modelscaling.configuration import OptimizerConfiguration
from modelscaling_trainer.schedule import learning_rate


def make_settings(shape: ScheduleShape, *, warmup: int, decay: int) -> OptimizerConfiguration:
    return OptimizerConfiguration(
        learning_rate=1.0,
        schedule=shape,
        warmup_steps=warmup,
        decay_steps=decay,
        minimum_learning_rate=0.1,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        gradient_clip_norm=1.0,
    )


COSINE = make_settings(ScheduleShape.COSINE, warmup=4, decay=8)
STABLE = make_settings(ScheduleShape.WARMUP_STABLE_DECAY, warmup=4, decay=4)


@pytest.mark.parametrize(
    ("settings", "step", "rate"),
    [
        (COSINE, 0, 0.25),
        (COSINE, 3, 1.0),
        (COSINE, 7, 0.55),
        (COSINE, 11, 0.1),
        (STABLE, 3, 1.0),
        (STABLE, 7, 1.0),
        (STABLE, 9, 0.55),
        (STABLE, 11, 0.1),
    ],
    ids=[
        "cosine starts to warm up",
        "cosine ends to warm up at the peak",
        "cosine is half way down in the middle",
        "cosine ends at the minimum",
        "stable ends to warm up at the peak",
        "stable stays",
        "stable falls linearly",
        "stable ends at the minimum",
    ],
)
def test_rates_of_twelve_steps(settings: OptimizerConfiguration, step: int, rate: float) -> None:
    assert rate == pytest.approx(learning_rate(settings, step=step, total_steps=12))


@given(
    shape=st.sampled_from(ScheduleShape),
    total=st.integers(1, 500),
    draw=st.data(),
)
def test_the_rate_rises_then_never_rises_again(
    shape: ScheduleShape, total: int, draw: st.DataObject
) -> None:
    warmup = draw.draw(st.integers(0, total))
    decay = (
        total - warmup
        if shape is ScheduleShape.COSINE
        else draw.draw(st.integers(0, total - warmup))
    )
    settings = make_settings(shape, warmup=warmup, decay=decay)
    rates = [learning_rate(settings, step=step, total_steps=total) for step in range(total)]

    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize("settings", [COSINE, STABLE], ids=["cosine", "stable"])
def test_after_a_growth_the_rate_rises_to_where_it_would_be(
    settings: OptimizerConfiguration,
) -> None:
    settings = settings.model_copy(update={"rewarmup_steps": 4})
    parts = [
        learning_rate(settings, step=step, total_steps=12, grown_at=5)
        / learning_rate(settings, step=step, total_steps=12)
        for step in range(12)
    ]

    assert parts[5:] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_without_a_rewarmup_growth_changes_no_rate() -> None:
    for step in range(5, 12):
        assert learning_rate(COSINE, step=step, total_steps=12, grown_at=5) == learning_rate(
            COSINE, step=step, total_steps=12
        )
