"""Where backward passes leave the gradient of a process' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor


class GradientStore(Protocol):
    """What steps need of it: gradient.py for whole weights, parallel/sharded_gradient.py."""

    @property
    def own_square(self) -> float | None:
        """Squared norm of this process' own gradient, before the sum, where it is known."""
        ...

    def join(self, copies: dist.ProcessGroup) -> None:
        """Sum over the processes that hold copies of the weights from now on."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return this process' shard of each weight's gradient."""
        ...

    def clear(self) -> None:
        """Begin a step."""
        ...

    def before_backward(self, *, is_last: bool) -> None:
        """Prepare for the next backward pass, which may be the last of the step."""
        ...

    def after_schedule(self) -> None:
        """End the backward passes of a pipeline."""
        ...

    def finish(self) -> None:
        """Wait until the gradient is summed over the copies of the weights."""
        ...
