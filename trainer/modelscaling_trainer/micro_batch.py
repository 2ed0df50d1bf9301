"""How many samples a process computes at once."""

from __future__ import annotations

from modelscaling.shape import divisors
from modelscaling_trainer.errors import ConfigurationError

_TOKENS_AT_ONCE = 16_384


def micro_batch_size(part: int, *, context_length: int, declared: int | None) -> int:
    """Return how many of a process' `part` of the global batch it computes at once.

    Raises:
        ConfigurationError: the declared size does not divide the part.
    """
    if declared is not None:
        if part % declared:
            raise ConfigurationError(
                "InvalidMicroBatch",
                f"training.microBatchSize={declared} does not divide a process' part of the "
                f"global batch, {part} samples; set it to one of {divisors(part)}",
            )
        return declared
    fitting = [size for size in divisors(part) if size * context_length <= _TOKENS_AT_ONCE]
    return max(fitting, default=1)
