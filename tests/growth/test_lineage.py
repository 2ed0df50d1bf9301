"""What follows from the models that a model was grown from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from modelscaling.growth.heritage import Age
from modelscaling.growth.lineage import Lineage, lineage_from_json
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import UnreachableShapeError
from modelscaling.layout import Region, weights
from tests.growth.growing import make_shape, plan

SMALL = make_shape()
WIDER = plan(SMALL, feed_forward_size=50).shape
DEEPER = plan(WIDER, layers=3, feed_forward_size=60).shape
LINEAGE = (
    Lineage()
    .grown(SMALL, step=10, mode=GrowthMode.PRESERVE)
    .grown(WIDER, step=30, mode=GrowthMode.PRESERVE)
)


def test_a_model_that_never_grew_has_no_heritage() -> None:
    assert Lineage().heritage(SMALL) == {}


def test_entries_are_as_old_as_the_growth_that_brought_them() -> None:
    heritage = LINEAGE.heritage(DEEPER)

    assert heritage.keys() == weights(DEEPER).keys()
    up = heritage["layers.0.mlp.up_proj.weight"]
    assert up.axes == ((Age(40, 0), Age(10, 10), Age(10, 30)), (Age(24, 0),))
    down = heritage["layers.0.mlp.down_proj.weight"]
    assert down.axes == ((Age(24, 0),), (Age(40, 0), Age(10, 10), Age(10, 30)))
    assert (up.oldest, up.youngest, up.has_mixed_ages) == (0, 30, True)


def test_a_copied_layer_is_as_old_as_the_copy() -> None:
    copied = LINEAGE.heritage(DEEPER)["layers.2.mlp.up_proj.weight"]

    assert not copied.has_mixed_ages
    assert copied.oldest == copied.youngest == 30


def test_the_heritage_of_a_block_is_cut_from_that_of_the_whole() -> None:
    up = LINEAGE.heritage(DEEPER)["layers.0.mlp.up_proj.weight"]
    block = up.within(Region((45, 3), (7, 20)))

    assert block.axes == ((Age(5, 10), Age(2, 30)), (Age(20, 0),))


def test_factors_of_clones_multiply() -> None:
    twice = plan(SMALL, hidden_size=48).shape
    six_times = plan(twice, hidden_size=144).shape
    lineage = (
        Lineage()
        .grown(SMALL, step=1, mode=GrowthMode.PRESERVE)
        .grown(twice, step=2, mode=GrowthMode.PRESERVE)
    )
    heritage = lineage.heritage(six_times)

    reads, writes = heritage["lm_head.weight"], heritage["layers.1.mlp.down_proj.weight"]
    assert reads.learning_rate == pytest.approx(1 / 6)
    assert [reads.weight_decay, reads.epsilon] == pytest.approx([6, 1])
    assert [writes.learning_rate, writes.epsilon] == pytest.approx([1, 1 / 6])


def test_a_lineage_comes_back_from_json() -> None:
    assert lineage_from_json(json.loads(json.dumps(LINEAGE.to_json()))) == LINEAGE
    assert lineage_from_json([]) == Lineage()


@pytest.mark.parametrize(
    "value", [[{"step": 1}], [{"shape": {}, "step": 1, "mode": "Preserve"}], [1]]
)
def test_what_is_no_lineage_is_refused(value: list[dict[str, object]]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        lineage_from_json(value)


def test_the_lineage_of_another_model_is_refused() -> None:
    with pytest.raises(UnreachableShapeError, match="feedForwardSize: 30 is less than the 50"):
        LINEAGE.heritage(replace(SMALL, feed_forward_size=30))
