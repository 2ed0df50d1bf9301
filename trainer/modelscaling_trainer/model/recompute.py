"""Activation checkpointing: what of a layer is kept for the backward pass, what computed again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", for a whole layer; the selective
way keeps the results of the matrix products, which cost most to compute, and recomputes the rest
(norms, activations, rotations), which costs most to keep for its worth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from modelscaling.api.training import ActivationCheckpointing

Recompute = Callable[..., torch.Tensor]
"""Calls a function with its arguments, and decides what autograd keeps of that."""


def keep_everything(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:  # noqa: ANN401
    """Call, keeping all that the backward pass needs."""
    return function(*arguments)


def recompute(mode: ActivationCheckpointing) -> Recompute:
    """Return how a layer is called under a mode."""
    if mode is ActivationCheckpointing.NONE:
        return keep_everything
    # Imported where it is used: most runs do not.
    from torch.utils.checkpoint import checkpoint, noop_context_fn  # noqa: PLC0415

    return partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing random is in a layer
        context_fn=_keep_products if mode is ActivationCheckpointing.SELECTIVE else noop_context_fn,
    )


def _keep_products() -> Any:  # noqa: ANN401 - a pair of torch's context managers
    from torch.utils.checkpoint import create_selective_checkpoint_contexts  # noqa: PLC0415

    aten = torch.ops.aten
    return create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
        [
            aten.mm.default,
            aten.addmm.default,
            aten._scaled_dot_product_flash_attention.default,  # noqa: SLF001
            aten._scaled_dot_product_efficient_attention.default,  # noqa: SLF001
            aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001
        ]
    )
