"""The gradient noise scale: the batch size above which larger batches stop paying.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1: the squared norm
of the gradient of a small and of a large batch give unbiased estimates of the true gradient's
squared norm |G|² and of the noise S (the trace of the covariance), and S / |G|² is the scale. Both
estimates are noisy, so each is averaged over steps before they are divided.
"""

from __future__ import annotations

from dataclasses import dataclass

_DECAY = 0.95
"""Of the running averages: they look back over about 20 steps."""


@dataclass(slots=True)
class NoiseScale:
    """Running estimate over the steps of one group."""

    _signal: float = 0.0
    _noise: float = 0.0

    def observe(
        self, *, small_square: float, small_batch: int, large_square: float, large_batch: int
    ) -> None:
        """Take the squared gradient norms of a step: the mean over parts, and of the whole.

        Batches are in samples. Nothing can be learned where the batch is one part.
        """
        if small_batch >= large_batch:
            return
        signal = (large_batch * large_square - small_batch * small_square) / (
            large_batch - small_batch
        )
        noise = (small_square - large_square) / (1 / small_batch - 1 / large_batch)
        # Both averages begin at 0; what that takes from each cancels in their ratio.
        self._signal += (1 - _DECAY) * (signal - self._signal)
        self._noise += (1 - _DECAY) * (noise - self._noise)

    @property
    def samples(self) -> float | None:
        """The noise scale in samples; None while the estimates make no sense of it."""
        if self._signal <= 0 or self._noise <= 0:
            return None
        return self._noise / self._signal
