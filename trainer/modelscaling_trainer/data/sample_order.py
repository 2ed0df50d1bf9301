"""Which sample comes where: a shuffle that is computed, not stored.

A keyed permutation of 0 … n−1 (a Feistel network over the next even power of two, walked along
its cycle until it is back below n) gives the sample at any position in constant memory, so that
billions of samples need no array, and any process knows any position of any epoch by itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 6


class Permutation:
    """A pseudo-random permutation of 0 … size−1, fixed by its key."""

    def __init__(self, size: int, key: str) -> None:
        """Take 1 ≤ size ≤ 2^62; equal keys give equal permutations."""
        if not 1 <= size <= 1 << 62:
            raise ValueError(f"size={size} must be from 1 to 2^62")
        self._size = np.uint64(size)
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_bits = np.uint64(half_bits)
        self._half_mask = np.uint64((1 << half_bits) - 1)
        material = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._round_keys = np.frombuffer(material, dtype="<u8")

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the element at each position; positions are from 0 to size−1."""
        values = self._encrypt(positions.astype(np.uint64))
        outside = values >= self._size
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self._size
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (mix(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each value (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def global_batch(*, seed: int, step: int, batch_size: int, samples: int) -> NDArray[np.int64]:
    """Return the sample numbers of the global batch of `step`, a function of seed and step only.

    Batches follow each other through the epochs; a batch may span two of them, and more where the
    data is smaller than a batch.
    """
    first = step * batch_size
    batch = np.empty(batch_size, dtype=np.int64)
    filled = 0
    while filled < batch_size:
        epoch, position = divmod(first + filled, samples)
        count = min(samples - position, batch_size - filled)
        positions = np.arange(position, position + count, dtype=np.int64)
        batch[filled : filled + count] = Permutation(samples, f"train {seed} {epoch}")(positions)
        filled += count
    return batch
