"""Samples as a process needs them: on its device, and its own part of their tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from modelscaling_trainer.data.samples import Samples


class Reader:
    """Reads samples, and counts how long that takes."""

    def __init__(
        self, samples: Samples, *, device: torch.device, positions: torch.Tensor | None
    ) -> None:
        """`positions` are the tokens of each sample that are computed here; None is all."""
        self._samples = samples
        self._device = device
        self._positions = positions
        self._seconds = 0.0

    @property
    def training_count(self) -> int:
        """How many samples there are to train on."""
        return self._samples.training_count

    def training(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens and the targets, int64 of shape (samples, tokens), of samples."""
        started = time.perf_counter()
        read = self._move(self._samples.training(numbers))
        self._seconds += time.perf_counter() - started
        return read

    def held_out(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same of held-out samples."""
        return self._move(self._samples.held_out(numbers))

    def take_seconds(self) -> float:
        """Return how long reading took since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _move(self, read: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = read
        if self._positions is not None:
            inputs, targets = inputs[:, self._positions], targets[:, self._positions]
        return inputs.to(self._device), targets.to(self._device)
