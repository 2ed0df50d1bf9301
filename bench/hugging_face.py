"""Hugging Face transformers' Llama as a contender: alone, with DistributedDataParallel, and with
fully_shard block by block, as its Trainer wraps it.

    python -m bench.hugging_face S Float32    writes a line after each step, until it is ended
"""

from __future__ import annotations

import sys
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench import peer
from bench.case import CASES
from bench.contest import Contender, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.case import Case


class Spread(StrEnum):
    """How the model is spread over processes."""

    ALONE = "alone"
    REPLICATED = "DDP"
    SHARDED = "fully_shard"


def hugging_face(
    case: Case, *, is_bfloat16: bool, spread: Spread = Spread.ALONE, is_compiled: bool = False
) -> Contender:
    """Return transformers' model in one process, or spread over two."""
    name = "transformers" if spread is Spread.ALONE else f"transformers {spread}"
    return Contender(
        name=f"{name}, compiled" if is_compiled else name,
        train=partial(
            _train, case=case, is_bfloat16=is_bfloat16, spread=spread, is_compiled=is_compiled
        ),
        processes=1 if spread is Spread.ALONE else 2,
    )


def _train(
    place: Place,
    end_turn: Callable[[], None],
    *,
    case: Case,
    is_bfloat16: bool,
    spread: Spread,
    is_compiled: bool,
) -> None:
    torch.set_num_threads(1)
    model = _make(case)
    if place.size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{place.directory}/meeting",
            rank=place.rank,
            world_size=place.size,
        )
    if is_compiled:
        model.compile(dynamic=False)
    if spread is Spread.REPLICATED:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    if spread is Spread.SHARDED:
        _shard(model, is_bfloat16=is_bfloat16)
    peer.train(
        lambda inputs: model(inputs).logits,
        model,
        batch=peer.make_batch(case, rank=place.rank, size=place.size),
        has_autocast=is_bfloat16,
        end_turn=end_turn,
    )


def _make(case: Case) -> nn.Module:
    shape = case.shape
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.feed_forward_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_size,
            max_position_embeddings=shape.context_length,
            tie_word_embeddings=shape.tied_embeddings,
            use_cache=False,
        )
    )
    return model


def _shard(model: nn.Module, *, is_bfloat16: bool) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if is_bfloat16
        else MixedPrecisionPolicy()
    )
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def main() -> None:
    """Train alone, from the start of a process on."""
    from pathlib import Path  # noqa: PLC0415

    case, precision = CASES[sys.argv[1]], sys.argv[2]
    contender = hugging_face(case, is_bfloat16=precision == "BFloat16")
    contender.train(Place(rank=0, size=1, directory=Path()), lambda: print("step", flush=True))


if __name__ == "__main__":
    main()
