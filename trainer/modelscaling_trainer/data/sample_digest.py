"""A proof of which samples a run has seen, in which step and place, that no mesh can change.

Each rank hashes the samples that it really fed and sums the hashes modulo 2^64. Such sums add up
over ranks to the same number however the batch was cut, and the rolling digest chains the number
of each step to those before. The sums travel as 16-bit limbs in float64, which adds them exactly
for up to 2^37 ranks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from modelscaling_trainer.data.sample_order import mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LIMBS = 4
_LIMB_BITS = 16

EMPTY_DIGEST = "0" * 32
"""The digest of a run that has seen nothing."""


def batch_sum(step: int, positions: NDArray[np.int64], samples: NDArray[np.int64]) -> int:
    """Return the sum of the hashes of (step, position in the global batch, sample number)."""
    seed = mix(np.full(1, step, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    hashes = mix(mix(seed ^ positions.astype(np.uint64)) ^ samples.astype(np.uint64))
    return int(hashes.sum(dtype=np.uint64))


def to_limbs(number: int) -> list[float]:
    """Return a 64-bit number as four 16-bit limbs, the lowest first."""
    return [float((number >> (_LIMB_BITS * i)) & 0xFFFF) for i in range(LIMBS)]


def from_limbs(limbs: Sequence[float]) -> int:
    """Return the number modulo 2^64 whose limbs, which may have been summed, are given."""
    return sum(int(limb) << (_LIMB_BITS * i) for i, limb in enumerate(limbs)) % (1 << 64)


def chain(previous: str, batch: int) -> str:
    """Return the rolling digest after a step whose ranks' sums add up to `batch`."""
    content = bytes.fromhex(previous) + batch.to_bytes(8, "little")
    return hashlib.blake2b(content, digest_size=16).hexdigest()
