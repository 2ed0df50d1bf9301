"""torchtitan's Llama 3 as a contender, in one process.

Its trainer needs a GPU; its model does not, with one change: its own attention backends are flex
(no backward pass on a CPU) and varlen (CUDA only), so the third that it has, scaled dot product, is
put in their place. Compiled as torchtitan does: each block by itself, whole.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from bench import peer
from bench.contest import Contender

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from bench.case import Case
    from bench.contest import Place


def torchtitan(case: Case, *, is_bfloat16: bool, is_compiled: bool = False) -> Contender:
    """Return torchtitan's model in one process."""
    return Contender(
        name="torchtitan, compiled" if is_compiled else "torchtitan",
        train=partial(_train, case=case, is_bfloat16=is_bfloat16, is_compiled=is_compiled),
    )


def _train(
    place: Place,
    end_turn: Callable[[], None],
    *,
    case: Case,
    is_bfloat16: bool,
    is_compiled: bool,
) -> None:
    torch.set_num_threads(1)
    model = _make(case)
    if is_compiled:
        for block in model.get_submodule("layers").children():
            block.compile(fullgraph=True)
    peer.train(
        model,
        model,
        batch=peer.make_batch(case, rank=place.rank, size=place.size),
        has_autocast=is_bfloat16,
        end_turn=end_turn,
    )


def _make(case: Case) -> nn.Module:
    from torchtitan.models import common, llama3  # noqa: PLC0415
    from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: PLC0415
    from torchtitan.models.common.config_utils import (  # noqa: PLC0415
        make_ffn_config,
        make_gqa_config,
    )
    from torchtitan.models.llama3.model import Llama3TransformerBlock  # noqa: PLC0415

    shape = case.shape
    size = shape.hidden_size
    matrix = {"weight": partial(torch.nn.init.normal_, std=0.02)}
    norm = common.RMSNorm.Config(normalized_shape=size, param_init={"weight": torch.nn.init.ones_})
    block = partial(
        Llama3TransformerBlock.Config,
        attention_norm=norm,
        ffn_norm=norm,
        attention=make_gqa_config(
            dim=size,
            n_heads=shape.heads,
            n_kv_heads=shape.kv_heads,
            wqkv_param_init=matrix,
            wo_param_init=matrix,
            inner_attention=ScaledDotProductAttention.Config(),
            fuse_qkv=True,
            rope=common.ComplexRoPE.Config(
                dim=shape.head_size, max_seq_len=shape.context_length, theta=shape.rope_theta
            ),
        ),
        feed_forward=make_ffn_config(
            dim=size,
            hidden_dim=shape.feed_forward_size,
            w1_param_init=matrix,
            w2w3_param_init=matrix,
        ),
    )
    model: nn.Module = llama3.Llama3Model.Config(
        dim=size,
        vocab_size=shape.vocabulary_size,
        enable_weight_tying=shape.tied_embeddings,
        tok_embeddings=common.Embedding.Config(
            num_embeddings=shape.vocabulary_size, embedding_dim=size, param_init=matrix
        ),
        norm=norm,
        lm_head=common.Linear.Config(
            in_features=size, out_features=shape.vocabulary_size, param_init=matrix
        ),
        layers=[block() for _ in range(shape.layers)],
    ).build()
    model.init_states(buffer_device=torch.device("cpu"))  # type: ignore[operator]
    return model
