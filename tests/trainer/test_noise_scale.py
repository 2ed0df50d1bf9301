from __future__ import annotations

import random

import pytest

from modelscaling_trainer.noise_scale import NoiseScale


def test_the_scale_of_a_known_gradient_and_noise_is_found() -> None:
    # A gradient of (3, 4) with noise of variance 2 in each of 2 elements, a sample: 4 / 25.
    draw = random.Random(0)
    scale = NoiseScale()

    def square(batch: int) -> tuple[float, list[float]]:
        mean = [
            3 + draw.gauss(0, (2 / batch) ** 0.5),
            4 + draw.gauss(0, (2 / batch) ** 0.5),
        ]
        return sum(x * x for x in mean), mean

    estimates = []
    for step in range(4000):
        parts = [square(4) for _ in range(2)]
        whole = [sum(mean[i] for _, mean in parts) / 2 for i in range(2)]
        scale.observe(
            small_square=sum(s for s, _ in parts) / 2,
            small_batch=4,
            large_square=sum(x * x for x in whole),
            large_batch=8,
        )
        if step > 100 and scale.samples is not None:
            estimates.append(scale.samples)

    assert sum(estimates) / len(estimates) == pytest.approx(4 / 25, rel=0.1)


def test_one_process_cannot_tell() -> None:
    scale = NoiseScale()
    scale.observe(small_square=1.0, small_batch=8, large_square=1.0, large_batch=8)

    assert scale.samples is None
