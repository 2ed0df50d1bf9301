from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling_trainer.data.sample_order import Permutation, global_batch

SEEDS = st.integers(0, 2**31 - 1)


@given(size=st.integers(1, 5000), seed=SEEDS)
def test_every_element_comes_once(size: int, seed: int) -> None:
    order = Permutation(size, f"key {seed}")(np.arange(size))

    assert np.array_equal(np.arange(size), np.sort(order))


@given(size=st.integers(2, 1 << 62), seed=SEEDS, draw=st.data())
def test_elements_of_a_huge_permutation_stay_in_it_and_apart(
    size: int, seed: int, draw: st.DataObject
) -> None:
    positions = draw.draw(st.sets(st.integers(0, size - 1), min_size=2, max_size=50))
    elements = Permutation(size, str(seed))(np.array(sorted(positions), dtype=np.int64))

    assert len(set(elements.tolist())) == len(positions)
    assert 0 <= elements.min() <= elements.max() < size


def test_a_position_can_be_asked_for_by_itself() -> None:
    permutation = Permutation(1000, "key")
    all_at_once = permutation(np.arange(1000))

    assert all_at_once[417] == permutation(np.array([417]))[0]


def test_neighbours_are_scattered_evenly() -> None:
    size = 100_000
    order = Permutation(size, "key")(np.arange(size))

    distances = np.abs(np.diff(order)) / size
    assert distances.mean() == pytest.approx(1 / 3, abs=0.01)  # of two uniform draws
    correlation = np.corrcoef(np.arange(size), order)[0, 1]
    assert abs(correlation) < 0.02


@pytest.mark.parametrize("size", [0, -1, (1 << 62) + 1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size}"):
        Permutation(size, "key")


@given(
    seed=SEEDS,
    batch_size=st.integers(1, 40),
    samples=st.integers(1, 60),
    steps=st.integers(1, 12),
)
def test_batches_go_through_one_epoch_after_another(
    seed: int, batch_size: int, samples: int, steps: int
) -> None:
    batches = [
        global_batch(seed=seed, step=step, batch_size=batch_size, samples=samples)
        for step in range(steps)
    ]
    stream = np.concatenate(batches)

    for epoch in range(stream.size // samples):
        seen = stream[epoch * samples : (epoch + 1) * samples]
        assert np.array_equal(np.arange(samples), np.sort(seen))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        batch = global_batch(seed=seed, step=number, batch_size=100, samples=100)
        return [int(sample) for sample in batch]

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 0) == epoch(0, 0)
