from __future__ import annotations

import pytest

from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.micro_batch import micro_batch_size


@pytest.mark.parametrize(
    ("part", "context_length", "declared", "size"),
    [
        (8, 512, None, 8),
        (64, 512, None, 32),
        (48, 1024, None, 16),
        (7, 8192, None, 1),
        (4, 32_768, None, 1),
        (64, 512, 4, 4),
    ],
    ids=[
        "the whole part where it fits",
        "half of it where it does not",
        "the largest divisor that fits",
        "one where only that divides",
        "one where even that is too long",
        "as declared",
    ],
)
def test_sizes(part: int, context_length: int, declared: int | None, size: int) -> None:
    assert size == micro_batch_size(part, context_length=context_length, declared=declared)


def test_a_declared_size_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigurationError, match=r"microBatchSize=5.*12 samples.*\[1, 2, 3, 4, 6"):
        micro_batch_size(12, context_length=8, declared=5)
