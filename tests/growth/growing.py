"""Models that grow, for tests: shapes drawn at random, and whole states grown in one process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import GrowthPlan, plan_growth
from modelscaling.growth.tensor_growth import Kind
from modelscaling.layout import Region, layout, weights
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.growth.filling import fresh_values, grow_into
from modelscaling_trainer.model.decoder import Decoder
from modelscaling_trainer.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SEED = 5
"""Of what a test draws that draws no seed."""
SEEDS = st.integers(0, 2**31 - 1)


def make_shape(**changes: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "layers": 2,
        "hidden_size": 24,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
        "feed_forward_size": 40,
        "vocabulary_size": 61,
        "context_length": 16,
        "tied_embeddings": False,
    }
    return ModelShape(**fields | changes)


@st.composite
def small_shapes(draw: st.DrawFn, *, narrowest: int = 1) -> ModelShape:
    """Draw a shape whose hidden and feed-forward sizes are at least `narrowest`: a norm of few
    entries, or of what a feed-forward of few makes, may be nearly 0, and to divide by that
    amplifies any rounding, be it of the small model alone.
    """
    kv_heads = draw(st.integers(1, 3))
    return make_shape(
        layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(max(2, narrowest), 40)),
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_size=2 * draw(st.integers(1, 8)),
        feed_forward_size=draw(st.integers(narrowest, 70)),
        vocabulary_size=draw(st.integers(2, 70)),
        context_length=draw(st.integers(2, 20)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        norm_after=draw(st.booleans()),
    )


def plan(
    small: ModelShape,
    mode: GrowthMode = GrowthMode.PRESERVE,
    *,
    noise: float = 0.0,
    **changes: Any,
) -> GrowthPlan:
    return plan_growth(small, replace(small, **changes), mode, noise=noise)


def make_state(
    shape: ModelShape, *, dtype: torch.dtype = torch.float32, seed: int = SEED
) -> dict[str, Tensor]:
    """Return weights as trained ones are, of no two alike, and moments; squares are positive."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in weights(shape).items():
        values = torch.randn(size, generator=draw, dtype=torch.float64)
        state[f"model.{name}"] = 1 + 0.2 * values if len(size) == 1 else 0.3 * values
        state[f"exp_avg.{name}"] = torch.randn(size, generator=draw, dtype=torch.float64) * 1e-2
        state[f"exp_avg_sq.{name}"] = torch.rand(size, generator=draw, dtype=torch.float64) * 1e-3
    return {name: values.to(dtype) for name, values in state.items()}


def grown(
    state: Mapping[str, Tensor],
    growth: GrowthPlan,
    *,
    mesh: Mesh | None = None,
    rank: int = 0,
    seed: int = SEED,
) -> dict[str, Tensor]:
    """Return what a rank of a mesh, or a single process, makes of a state: it is given no more of
    the old tensors than the block that it asks for.
    """
    found = {}
    pieces = layout(growth.shape, mesh or Mesh(), rank)
    for name, tensor in growth.growth().items():
        if name not in pieces:
            continue
        for kind in Kind:
            old = state.get(f"{kind}.{tensor.source}")
            if old is None:
                continue
            piece = pieces[name]
            target = Shard(torch.full(piece.region.size, torch.nan, dtype=old.dtype), piece)
            held = tensor.needed(piece.region, kind)
            grow_into(
                target,
                tensor,
                kind,
                source=None if held is None else old[held.within(_whole(old))].clone(),
                held=held,
                fresh=partial(fresh_values, name, target, seed=seed, layers=growth.shape.layers),
            )
            found[f"{kind}.{name}"] = target.tensor
    return found


def make_decoder(state: Mapping[str, Tensor], shape: ModelShape) -> Decoder:
    """Return a decoder with the weights of a state, computing in their type."""
    dtype = next(iter(state.values())).dtype
    decoder = Decoder(shape, compute_dtype=dtype).to(dtype)
    with torch.no_grad():
        for name, parameter in decoder.weights().items():
            parameter.copy_(state[f"model.{name}"])
    return decoder


def make_ids(shape: ModelShape, *, samples: int = 2, seed: int = SEED) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    size = (samples, shape.context_length)
    return torch.randint(0, shape.vocabulary_size, size, generator=draw)


def logits_before_and_after(
    growth: GrowthPlan, dtype: torch.dtype, *, seed: int = SEED
) -> tuple[Tensor, Tensor]:
    """Return the logits of old tokens at old positions of the old and of the grown model."""
    state = make_state(growth.before, dtype=dtype, seed=seed)
    ids = make_ids(growth.before, seed=seed)
    with torch.no_grad():
        old = make_decoder(state, growth.before)(ids)
        new = make_decoder(grown(state, growth, seed=seed), growth.shape)(ids)
    return old, new[..., : growth.before.vocabulary_size]


def relative_difference(old: Tensor, new: Tensor) -> float:
    return float((old - new).abs().max() / old.abs().max())


def _whole(tensor: Tensor) -> Region:
    return Region((0,) * tensor.ndim, tuple(tensor.shape))
