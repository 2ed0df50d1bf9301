from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelscaling_trainer.data.sample_digest import (
    EMPTY_DIGEST,
    batch_sum,
    chain,
    from_limbs,
    to_limbs,
)


@given(
    batch=st.lists(st.integers(0, 1 << 60), min_size=2, max_size=64),
    step=st.integers(0, 1 << 40),
    draw=st.data(),
)
def test_the_sum_does_not_depend_on_how_the_batch_is_cut(
    batch: list[int], step: int, draw: st.DataObject
) -> None:
    cut = draw.draw(st.integers(1, len(batch) - 1))
    positions, samples = np.arange(len(batch)), np.array(batch)
    whole = batch_sum(step, positions, samples)
    first = to_limbs(batch_sum(step, positions[:cut], samples[:cut]))
    second = to_limbs(batch_sum(step, positions[cut:], samples[cut:]))

    assert whole == from_limbs([a + b for a, b in zip(first, second, strict=True)])


@given(number=st.integers(0, (1 << 64) - 1))
def test_a_number_survives_its_limbs(number: int) -> None:
    assert number == from_limbs(to_limbs(number))


def test_the_limbs_of_many_ranks_add_up_exactly() -> None:
    ranks, largest = 65_536, (1 << 64) - 1
    summed = [ranks * limb for limb in to_limbs(largest)]

    assert from_limbs(summed) == ranks * largest % (1 << 64)


def test_order_step_and_samples_all_show() -> None:
    samples = np.array([5, 9, 2])
    sums = {
        "as it is": batch_sum(3, np.arange(3), samples),
        "another order": batch_sum(3, np.arange(3), samples[::-1]),
        "another step": batch_sum(4, np.arange(3), samples),
        "another sample": batch_sum(3, np.arange(3), np.array([5, 9, 3])),
        "one left out": batch_sum(3, np.arange(2), samples[:2]),
        "one twice": batch_sum(3, np.array([0, 1, 2, 2]), np.array([5, 9, 2, 2])),
    }

    assert len(set(sums.values())) == len(sums)


def test_the_chain_remembers_every_step() -> None:
    once = chain(chain(EMPTY_DIGEST, 1), 2)

    assert once != chain(chain(EMPTY_DIGEST, 2), 1)
    assert once != chain(EMPTY_DIGEST, 2)
    assert len(once) == len(EMPTY_DIGEST)
