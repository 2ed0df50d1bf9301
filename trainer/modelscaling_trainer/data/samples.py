"""Packed samples of a corpus: which there are, which are held out, and their tokens.

Sample i is the contextLength tokens from i × contextLength on, with the next token of each as its
target. Which samples are held out for validation is a function of the seed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from modelscaling_trainer.data.sample_order import Permutation
from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelscaling_trainer.data.corpus import Corpus

VALIDATION_TOKENS = 1 << 15
"""The validation loss is measured over the held-out samples up to so many tokens, and at least
one sample: the same ones every time."""


class Samples:
    """The samples of a corpus, split into those to train on and those held out."""

    def __init__(
        self, corpus: Corpus, *, context_length: int, validation_fraction: float, seed: int
    ) -> None:
        """Split the corpus.

        Raises:
            ConfigurationError: the corpus is too short for one sample to train on.
        """
        self._tokens = corpus.tokens
        self._context_length = context_length
        total = max(corpus.tokens.size - 1, 0) // context_length
        held_out = round(total * validation_fraction)
        if validation_fraction > 0 and total > 1:
            held_out = max(held_out, 1)
        if total - held_out < 1:
            raise ConfigurationError(
                "DataTooShort",
                f"the data has {corpus.tokens.size} tokens, and one sample of "
                f"model.contextLength={context_length} needs {context_length + 1}; give more "
                f"data, or a shorter contextLength",
            )
        self.training_count = total - held_out
        """How many samples there are to train on."""
        self.held_out_count = held_out
        """How many samples are never trained on."""
        self._split = Permutation(total, f"split {seed}")

    def training(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, int64 of shape (samples, context), of training samples."""
        return self._gather(self._split(numbers + self.held_out_count))

    def held_out(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, int64 of shape (samples, context), of held-out samples."""
        return self._gather(self._split(numbers))

    @property
    def validation_count(self) -> int:
        """How many of the held-out samples are measured; 0 where none is held out."""
        return min(self.held_out_count, max(1, VALIDATION_TOKENS // self._context_length))

    def _gather(self, samples: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = np.arange(self._context_length + 1, dtype=np.int64)
        places = samples[:, None] * self._context_length + offsets
        tokens = torch.from_numpy(self._tokens[places].astype(np.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
