"""Which part of which weight each process of a mesh holds: a pure function of shape, mesh and rank.

It says in one place what torch's tensor parallelism, fully_shard and the pipeline's cut do, so that
memory can be planned, checkpoints can be cut, and state can be moved between meshes without asking
the processes. Tests hold it against what torch really does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.mesh import Mesh
    from modelscaling.shape import ModelShape

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "norm.weight"
LORA_A, LORA_B = "lora_A", "lora_B"
"""What the names of a matrix' adapters end with, in place of `weight`."""
_LAYER = "layers."

_TENSOR_DIMENSION = {
    "embed_tokens.weight": 0,
    "lm_head.weight": 0,
    "q_proj.weight": 0,
    "q_proj.bias": 0,
    "q_norm.weight": 0,
    "k_proj.weight": 0,
    "k_proj.bias": 0,
    "k_norm.weight": 0,
    "v_proj.weight": 0,
    "v_proj.bias": 0,
    "gate_proj.weight": 0,
    "up_proj.weight": 0,
    "o_proj.weight": 1,
    "down_proj.weight": 1,
    "q_proj.lora_B": 0,
    "k_proj.lora_B": 0,
    "v_proj.lora_B": 0,
    "gate_proj.lora_B": 0,
    "up_proj.lora_B": 0,
    "o_proj.lora_A": 1,
    "down_proj.lora_A": 1,
}
"""The dimension that tensor parallelism cuts, by the end of the weight's name; others are whole."""


@dataclass(frozen=True, slots=True)
class Region:
    """A block of a tensor."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements; 0 where a dimension is too short to give everybody a part."""
        return prod(self.size)

    def intersect(self, other: Region) -> Region | None:
        """Return what both cover, in the tensor's own coordinates; None where that is nothing."""
        start = tuple(map(max, self.offset, other.offset))
        end = tuple(map(min, self._end, other._end))
        if any(a >= b for a, b in zip(start, end, strict=True)):
            return None
        return Region(start, tuple(b - a for a, b in zip(start, end, strict=True)))

    def around(self, other: Region) -> Region:
        """Return the smallest block that covers both."""
        start = tuple(map(min, self.offset, other.offset))
        end = tuple(map(max, self._end, other._end))
        return Region(start, tuple(b - a for a, b in zip(start, end, strict=True)))

    def within(self, outer: Region) -> tuple[slice, ...]:
        """Return the index of this block in a tensor that holds `outer`."""
        return tuple(
            slice(mine - base, mine - base + length)
            for mine, base, length in zip(self.offset, outer.offset, self.size, strict=True)
        )

    @property
    def _end(self) -> tuple[int, ...]:
        return tuple(a + n for a, n in zip(self.offset, self.size, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one process holds of a weight."""

    shape: tuple[int, ...]
    """Of the whole weight."""
    region: Region
    copy: int
    """Which of the processes that hold the same region this is, from 0."""
    copies: int
    """How many processes hold the same region."""


def weights(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight, by the name that the decoder gives it, in the order of the
    forward pass, a layer's adapters last. A tied table is there once, as the embedding.
    """
    matrices = _layer_weights(shape)
    layer = matrices | _adapters(shape, matrices)
    hidden = shape.hidden_size
    table = (shape.vocabulary_size, hidden)
    return {
        EMBEDDING: table,
        **{
            f"{_LAYER}{index}.{name}": size
            for index in range(shape.layers)
            for name, size in layer.items()
        },
        FINAL_NORM: (hidden,),
        **({} if shape.tied_embeddings else {HEAD: table}),
    }


def _adapters(
    shape: ModelShape, layer: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    if shape.lora is None:
        return {}
    rank, targets = shape.lora.rank, shape.lora.targets
    matrices = {name: size for name, size in layer.items() if name.endswith("_proj.weight")}
    return {
        name.removesuffix("weight") + end: adapter
        for name, (outputs, inputs) in matrices.items()
        if name.split(".")[-2] in targets
        for end, adapter in ((LORA_A, (rank, inputs)), (LORA_B, (outputs, rank)))
    }


def trained_weights(shape: ModelShape) -> list[str]:
    """Return the names of the weights that may be trained, which have gradients and moments: all,
    or of a model with adapters these.
    """
    return [name for name in weights(shape) if shape.lora is None or is_adapter(name)]


def is_adapter(name: str) -> bool:
    """Whether a weight is one of the two matrices of an adapter."""
    return name.endswith((LORA_A, LORA_B))


def layers_above(name: str, layers: int) -> int:
    """Return how many layers lie between a weight and the output, its own included, where the
    input table counts as one: 0 for the head and the last norm, `layers` + 1 for the table.
    """
    if name in {HEAD, FINAL_NORM}:
        return 0
    return layers + 1 if name == EMBEDDING else layers - _layer_of(name)


def _layer_of(name: str) -> int:
    return int(name.removeprefix(_LAYER).partition(".")[0])


def _layer_weights(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a layer, in the order of the forward pass."""
    hidden, feed_forward = shape.hidden_size, shape.feed_forward_size
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    norm = (hidden,)
    return {
        **({} if shape.norm_after else {"input_layernorm.weight": norm}),
        "self_attn.q_proj.weight": (query, hidden),
        **({"self_attn.q_proj.bias": (query,)} if shape.qkv_bias else {}),
        **({"self_attn.q_norm.weight": (query,)} if shape.qk_norm else {}),
        "self_attn.k_proj.weight": (key, hidden),
        **({"self_attn.k_proj.bias": (key,)} if shape.qkv_bias else {}),
        **({"self_attn.k_norm.weight": (key,)} if shape.qk_norm else {}),
        "self_attn.v_proj.weight": (key, hidden),
        **({"self_attn.v_proj.bias": (key,)} if shape.qkv_bias else {}),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": norm,
        "mlp.gate_proj.weight": (feed_forward, hidden),
        "mlp.up_proj.weight": (feed_forward, hidden),
        "mlp.down_proj.weight": (hidden, feed_forward),
        **({"post_feedforward_layernorm.weight": norm} if shape.norm_after else {}),
    }


def stage_layers(layers: int, stages: int) -> list[range]:
    """Return the layers of each pipeline stage; the first ones have one more where they do not
    divide, as the last stage has the output head's work beside its layers.
    """
    each, more = divmod(layers, stages)
    ends = [each * stage + min(stage, more) for stage in range(stages + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def process_stages(mesh: Mesh, rank: int) -> list[int]:
    """Return the pipeline stages that a process holds, in their order in the model."""
    first = mesh.coordinates(rank)["pipeline"]
    return [first + lap * mesh.pipeline for lap in range(mesh.stagesPerProcess)]


def layout(shape: ModelShape, mesh: Mesh, rank: int) -> dict[str, Piece]:
    """Return the piece of each weight that `rank` holds; weights of other stages are not in it."""
    mine = set(process_stages(mesh, rank))
    stages = stage_layers(shape.layers, mesh.stages)
    pieces = {}
    for name, size in weights(shape).items():
        holders = _stages_of(name, stages, is_tied=shape.tied_embeddings)
        here = [holder for holder, stage in enumerate(holders) if stage in mine]
        if here:
            pieces[name] = _piece(name, size, mesh, rank, holder=here[0], holders=len(holders))
    return pieces


def _stages_of(name: str, stages: list[range], *, is_tied: bool) -> list[int]:
    """Return the stages that use a weight; only a tied table is used by two."""
    last = len(stages) - 1
    if name == EMBEDDING:
        return [0, last] if is_tied and last else [0]
    if name in {HEAD, FINAL_NORM}:
        return [last]
    layer = _layer_of(name)
    return [stage for stage, layers in enumerate(stages) if layer in layers]


def _piece(
    name: str, size: tuple[int, ...], mesh: Mesh, rank: int, *, holder: int, holders: int
) -> Piece:
    """Return the piece of a weight that `holder` of the `holders` stages that use it has."""
    place = mesh.coordinates(rank)
    offset, length = [0] * len(size), list(size)
    dimension = next((d for end, d in _TENSOR_DIMENSION.items() if name.endswith(end)), None)
    copy, copies = holder, holders
    if dimension is None:
        copy, copies = copy * mesh.tensor + place["tensor"], copies * mesh.tensor
    else:
        offset[dimension], length[dimension] = _part(size[dimension], mesh.tensor, place["tensor"])
    shard = place["dataShard"] * mesh.context + place["context"]
    start, length[0] = _part(length[0], mesh.weight_shards, shard)
    offset[0] += start
    return Piece(
        shape=size,
        region=Region(tuple(offset), tuple(length)),
        copy=copy * mesh.dataReplicate + place["dataReplicate"],
        copies=copies * mesh.dataReplicate,
    )


def _part(length: int, parts: int, index: int) -> tuple[int, int]:
    """Return offset and length of a part, as torch.chunk cuts: all but the last ones are equal."""
    each = -(-length // parts)
    start = min(index * each, length)
    return start, min(each, length - start)
