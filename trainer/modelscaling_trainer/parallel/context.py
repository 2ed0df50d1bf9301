"""Context parallelism: each sample's tokens cut over the processes of the context axis.

Keys and values are gathered over the axis, as Llama 3 was trained (Grattafiori et al. 2024, section
3.3.2), because torch's own `context_parallel` does not run on a CPU. The causal mask gives late
tokens more work than early ones, so each sample is cut into 2·n blocks and process i takes the
blocks i and 2n-1-i: all have the same work.
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from modelscaling_trainer.model.attention import causal_attention

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling_trainer.model.decoder import Decoder


def positions(tokens: int, parts: int, part: int) -> Tensor:
    """Return the positions (int64, ascending) of a sample that a part has."""
    block = tokens // (2 * parts)
    early = torch.arange(part * block, (part + 1) * block)
    late = torch.arange((2 * parts - 1 - part) * block, (2 * parts - part) * block)
    return torch.cat((early, late))


def cut_context(stage: Decoder, group: dist.ProcessGroup) -> None:
    """Have a stage compute on this process' part of the tokens of each sample."""
    parts, part = group.size(), group.rank()
    mine = positions(stage.shape.context_length, parts, part).to(stage.device)
    stage.cos_TD, stage.sin_TD = stage.cos_TD[mine], stage.sin_TD[mine]
    attend = ContextAttention(group, window=stage.shape.window)
    for layer in stage.blocks():
        layer.self_attn.attend = attend


class ContextAttention:
    """Causal attention of this process' queries to the keys of all."""

    def __init__(self, group: dist.ProcessGroup, *, window: int | None = None) -> None:
        self._group = group
        self._window = window
        self._parts, self._part = group.size(), group.rank()

    def __call__(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        """Return what causal_attention would, for this process' tokens; all have T of them."""
        k_BKSD, v_BKSD = self._gather(k_BKTD), self._gather(v_BKTD)
        early, late = q_BHTD.chunk(2, dim=2)
        block = early.shape[2]
        seen_early = (self._part + 1) * block
        seen_late = (2 * self._parts - self._part) * block
        parts = [
            causal_attention(
                part_BHTD, k_BKSD[:, :, :seen], v_BKSD[:, :, :seen], window=self._window
            )
            for part_BHTD, seen in ((early, seen_early), (late, seen_late))
        ]
        return torch.cat(parts, dim=2)

    def _gather(self, x_BKTD: Tensor) -> Tensor:
        """Return the whole context (B, K, S, D), in its order."""
        parts = cast("Tensor", _Gather.apply(x_BKTD, self._group)).chunk(self._parts)
        early = [part.chunk(2, dim=2)[0] for part in parts]
        late = [part.chunk(2, dim=2)[1] for part in reversed(parts)]
        return torch.cat((*early, *late), dim=2)


class _Gather(torch.autograd.Function):
    """All parts, one after the other along the first axis; the gradient of a part is the sum of
    what all have of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401
        ctx.group = group
        x = x.contiguous()
        gathered = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x, group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        gradient = gradient.contiguous()
        parts = ctx.group.size()
        mine = gradient.new_empty((gradient.shape[0] // parts, *gradient.shape[1:]))
        dist.reduce_scatter_tensor(mine, gradient, group=ctx.group)
        return mine, None
