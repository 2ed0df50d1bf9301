"""AdamW of weights that have grown: their ages, and their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.growth.heritage import Age, Heritage
from modelscaling.layout import Region
from modelscaling_trainer.optimizer import MOMENTS, AdamW
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.configuration import OptimizerConfiguration

SETTINGS = make_run("unused", optimizer__weight_decay=0.5, optimizer__beta2=0.999).optimizer
MIXED = Heritage(axes=((Age(2, 0), Age(3, 4)), (Age(1, 2), Age(4, 0))))
BORN = torch.tensor([[2, 0, 0, 0, 0]] * 2 + [[4] * 5] * 3)
"""Of each entry of MIXED."""


def make_gradient(number: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.randn(5, 5, generator=draw, dtype=dtype)


def one_entry(row: int, column: int, *, since: int, until: int) -> float:
    """Return what becomes of one weight by itself, from a 1, over steps of its own."""
    weight = torch.ones(1, 1, dtype=torch.float64)
    optimizer = AdamW({"w": weight}, SETTINGS)
    for number in range(since, until):
        optimizer.step({"w": make_gradient(number)[row, column].view(1, 1)})
    return weight.item()


def test_every_entry_is_trained_as_if_it_were_alone() -> None:
    weight = torch.ones(5, 5, dtype=torch.float64)
    optimizer = AdamW({"w": weight}, SETTINGS, {"w": MIXED})
    for number in range(9):
        optimizer.set_steps(number)
        optimizer.step({"w": make_gradient(number)})
        is_unborn = number < BORN
        weight[is_unborn] = 1.0
        for moment in MOMENTS:
            optimizer.moments()[moment]["w"][is_unborn] = 0.0

    for row in range(5):
        for column in range(5):
            alone = one_entry(row, column, since=int(BORN[row, column]), until=9)
            assert weight[row, column].item() == pytest.approx(alone, rel=1e-13)


def test_the_first_step_of_a_new_entry_is_one_learning_rate_long() -> None:
    weight = torch.zeros(5, 5)
    optimizer = AdamW(
        {"w": weight}, SETTINGS, {"w": Heritage(axes=((Age(4, 0), Age(1, 900)), (Age(5, 0),)))}
    )
    optimizer.set_steps(900)
    optimizer.step({"w": torch.ones(5, 5)})

    assert weight[4].tolist() == pytest.approx([-SETTINGS.learning_rate] * 5, rel=1e-4)


def test_a_weight_of_one_age_has_steps_of_its_own() -> None:
    young, alone = torch.ones(5, 5), torch.ones(5, 5)
    born_at_7 = Heritage(axes=((Age(5, 7),), (Age(5, 3),)))
    optimizer = AdamW({"w": young}, SETTINGS, {"w": born_at_7})
    optimizer.set_steps(7)
    reference = AdamW({"w": alone}, SETTINGS)
    for number in range(3):
        optimizer.step({"w": make_gradient(number, dtype=torch.float32)})
        reference.step({"w": make_gradient(number, dtype=torch.float32)})

    assert torch.equal(young, alone)


@pytest.mark.parametrize(("steps", "is_plain"), [(300, False), (30_000, True)])
def test_ages_that_no_longer_matter_are_forgotten(steps: int, *, is_plain: bool) -> None:
    mixed, plain = torch.ones(5, 5), torch.ones(5, 5)
    optimizer, reference = (
        AdamW({"w": mixed}, SETTINGS, {"w": MIXED}),
        AdamW({"w": plain}, SETTINGS),
    )
    for one in (optimizer, reference):
        one.set_steps(steps)
        one.step({"w": make_gradient(1, dtype=torch.float32)})
        one.step({"w": make_gradient(2, dtype=torch.float32)})

    assert torch.equal(mixed, plain) is is_plain


@pytest.mark.parametrize(
    ("heritage", "settings"),
    [
        (
            Heritage(axes=((Age(5, 0),), (Age(5, 0),)), learning_rate=0.5, weight_decay=2.0),
            {"learning_rate": 0.5, "weight_decay": 2.0},
        ),
        (Heritage(axes=((Age(5, 0),), (Age(5, 0),)), epsilon=1e6), {"epsilon": 1e6}),
    ],
    ids=["learning rate and decay", "epsilon"],
)
def test_settings_are_multiplied(heritage: Heritage, settings: dict[str, float]) -> None:
    grown, plain = torch.ones(5, 5), torch.ones(5, 5)
    changed: OptimizerConfiguration = SETTINGS.model_copy(
        update={name: getattr(SETTINGS, name) * factor for name, factor in settings.items()}
    )
    AdamW({"w": grown}, SETTINGS, {"w": heritage}).step({"w": make_gradient(1).float()})
    AdamW({"w": plain}, changed).step({"w": make_gradient(1).float()})

    assert torch.equal(grown, plain)
    assert not torch.equal(grown, torch.ones(5, 5))


def test_a_factor_of_the_spec_multiplies_that_of_growth() -> None:
    heritage = Heritage(axes=((Age(5, 0),), (Age(5, 0),)), learning_rate=0.5, weight_decay=2.0)
    slowed, plain = torch.ones(5, 5), torch.ones(5, 5)
    gradient = {"w": make_gradient(1).float()}
    AdamW({"w": slowed}, SETTINGS, {"w": heritage}, factors={"w": 0.25}).step(gradient)
    changed = SETTINGS.model_copy(
        update={
            "learning_rate": SETTINGS.learning_rate * 0.125,
            "weight_decay": SETTINGS.weight_decay * 2,
        }
    )
    AdamW({"w": plain}, changed).step(gradient)

    assert torch.equal(slowed, plain)


def test_a_shard_is_trained_as_its_part_of_the_whole() -> None:
    whole, shard = torch.ones(5, 5), torch.ones(3, 5)
    region = Region((1, 0), (3, 5))
    optimizers = (
        AdamW({"w": whole}, SETTINGS, {"w": MIXED}),
        AdamW({"w": shard}, SETTINGS, {"w": MIXED.within(region)}),
    )
    for one in optimizers:
        one.set_steps(6)
    gradient = make_gradient(1).float()
    optimizers[0].step({"w": gradient})
    optimizers[1].step({"w": gradient[1:4]})

    assert torch.equal(whole[1:4], shard)


def test_a_shard_that_is_empty_has_nothing_to_train() -> None:
    empty = MIXED.within(Region((5, 0), (0, 5)))
    AdamW({"w": torch.ones(0, 5)}, SETTINGS, {"w": empty}).step({"w": torch.ones(0, 5)})

    assert not empty.has_mixed_ages
