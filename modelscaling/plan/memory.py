"""What a process of a mesh needs, by part, in bytes.

States (weights, gradients, moments) are exact: they follow from the layout. The rest is an
estimate, counted from what the decoder keeps for its backward pass, in the manner of Korthikanti
et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (equations 1 to 5,
with sequence parallelism), for a layer with SwiGLU, grouped-query attention and no dropout. For
each token and layer, with E the hidden size, A = heads · headSize, K = kvHeads · headSize,
F = feedForwardSize and b bytes of a number in the compute type:

| kept | bytes |
|---|---|
| inputs of the two norms, in float32 | 2 · 4 · E |
| on a CPU, what they are divided to, in float32 | 2 · 4 · E |
| the normed inputs of attention and feed-forward | 2 · b · E |
| query, attention's result, and its copy for the output product | 3 · b · A |
| key and value, those of the whole sample on every process of the context axis | 2 · b · K |
| attention's normalisers in float32 | 4 · heads |
| gate, its activation, up, their product | 4 · b · F |
| with a norm of queries and keys, its inputs in float32 | 4 · (A + K) |
| then on a CPU, what they are divided to, in float32 | 4 · (A + K) |
| on a CPU, the probabilities of the unmasked half, up to 2048 tokens | b · heads · T / 2 |

All is divided by the tensor axis and, in tokens, by the context axis. Selective checkpointing keeps
the layer's input and the results of its products; Full keeps the input alone; either needs one
whole layer more while it is computed again. A pipeline keeps as many micro batches as 1F1B has on
their way (Narayanan et al. 2021): the first process has most.

Not counted: the program itself, buffers of collectives, and what the allocator wastes. A sliding
window keeps less than is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from modelscaling.api.training import ActivationCheckpointing, Precision
from modelscaling.gathering import keeps_gathered
from modelscaling.layout import EMBEDDING, FINAL_NORM, HEAD, is_adapter, layout, stage_layers
from modelscaling.mesh import Mesh
from modelscaling.micro_batch import micro_batch_size

if TYPE_CHECKING:
    from modelscaling.plan.workload import Workload
    from modelscaling.shape import ModelShape

LONGEST_KEPT_PROBABILITIES = 2048
"""Tokens up to which attention on a CPU keeps its probabilities for the backward pass."""
_BLOCK_ROWS = 64
"""Rows of a block of them: the diagonal blocks are kept whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of the process that needs most, by part."""

    weights: int
    """Float32 weights; exact."""
    gradients: int
    """Float32 gradients of what is trained; exact."""
    moments: int
    """AdamW's two float32 moments of what is trained; exact."""
    gathered: int
    """Copies of weights in the compute type, and with a pipeline gradients that are not cut yet."""
    activations: int
    """What is kept for the backward pass."""
    logits: int
    """The logits of a micro batch, their float32 copy, log-probabilities and gradient."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    def by_part(self) -> dict[str, int]:
        """Return the bytes of each part and their total."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**parts, "total": self.total}


@dataclass(frozen=True, slots=True)
class _Holding:
    """Elements that the most loaded process holds of each kind of weight."""

    layer: int
    adapters: int
    """Those of a layer, which are a part of it."""
    embedding: int
    norm: int
    head: int


def estimate_memory(workload: Workload, mesh: Mesh) -> MemoryEstimate:
    """Return what the process of `mesh` that needs most needs; the mesh must be legal."""
    # Those between have no more layers, fewer micro batches, and neither table.
    ends = {0, mesh.pipeline - 1}
    return max((_of_process(workload, mesh, place) for place in ends), key=lambda m: m.total)


def _of_process(workload: Workload, mesh: Mesh, place: int) -> MemoryEstimate:
    """Return what the processes at a coordinate of the pipeline need."""
    chunks = stage_layers(workload.shape.layers, mesh.stages)[place :: mesh.pipeline]
    layers = sum(map(len, chunks))
    piece = _holding(workload.shape, mesh.tensor, mesh.weight_shards)
    held = _elements(workload.shape, mesh, piece, place, layers)
    trained = held if workload.shape.lora is None else layers * piece.adapters
    micro = micro_batch_size(
        workload.samples_of(mesh),
        context_length=workload.shape.context_length,
        mesh=mesh,
        declared=workload.micro_batch_size,
    )
    tokens = micro * workload.shape.context_length // mesh.context
    in_flight = _layers_in_flight(workload, mesh, place, micro, len(chunks[0]))
    is_last = place == mesh.pipeline - 1
    return MemoryEstimate(
        weights=4 * held,
        gradients=4 * trained,
        moments=8 * trained,
        gathered=_gathered(workload, mesh, place, layers),
        activations=_activations(workload, mesh, tokens, in_flight),
        logits=_logits(workload, mesh, tokens) if is_last else 0,
    )


def _elements(shape: ModelShape, mesh: Mesh, piece: _Holding, place: int, layers: int) -> int:
    """Return the elements that the fullest process at a place holds, as `layout` cuts them."""
    return layers * piece.layer + _outside_layers(piece, mesh, place, is_tied=shape.tied_embeddings)


def _outside_layers(piece: _Holding, mesh: Mesh, place: int, *, is_tied: bool) -> int:
    is_first, is_last = place == 0, place == mesh.pipeline - 1
    has_table = is_first or (is_tied and is_last)
    return has_table * piece.embedding + is_last * (piece.norm + piece.head)


@lru_cache(maxsize=4096)
def _holding(shape: ModelShape, tensor: int, shards: int) -> _Holding:
    """Return what the first process of a cut holds: the first part of a cut is the largest.

    Layers are alike, so the layout of a model of one layer says it all.
    """
    cut = Mesh(tensor=tensor, dataShard=shards)
    pieces = layout(replace(shape, layers=1), cut, 0)
    sizes = {name: piece.region.elements for name, piece in pieces.items()}
    embedding, norm, head = (sizes.pop(name, 0) for name in (EMBEDDING, FINAL_NORM, HEAD))
    return _Holding(
        layer=sum(sizes.values()),
        adapters=sum(size for name, size in sizes.items() if is_adapter(name)),
        embedding=embedding,
        norm=norm,
        head=head,
    )


def _gathered(workload: Workload, mesh: Mesh, place: int, layers: int) -> int:
    """Return the bytes of weights that are there a second time while they compute."""
    shape, number = workload.shape, workload.compute_bytes
    whole = _holding(shape, mesh.tensor, 1)
    rest = _outside_layers(whole, mesh, place, is_tied=shape.tied_embeddings)
    if mesh.weight_shards * mesh.tensor == 1:
        if workload.precision is Precision.FLOAT32:
            return 0
        keeps = workload.activation_checkpointing is ActivationCheckpointing.NONE
        return number * ((layers if keeps else 1) * whole.layer + rest)
    if mesh.pipeline == 1:
        keeps_all = keeps_gathered(shape, mesh, compute_bytes=number)
        return number * ((layers if keeps_all else 1) * whole.layer + rest)
    # torch's stages keep both between micro batches, rather than gathering and cutting each time.
    held = layers * whole.layer + rest
    trained = held if shape.lora is None else layers * whole.adapters
    return number * held + (4 * trained if mesh.weight_shards > 1 else 0)


def _layers_in_flight(
    workload: Workload, mesh: Mesh, place: int, micro: int, layers_of_chunk: int
) -> int:
    """Return how many layers' activations a process keeps at most: its chunks of layers, times the
    micro batches that 1F1B has sent through them and not yet back.
    """
    micro_batches = workload.samples_of(mesh) // micro
    ahead = mesh.pipeline - place - 1
    chunks = ahead + 1
    if mesh.stagesPerProcess > 1:
        chunks = 2 * ahead + (mesh.stagesPerProcess - 1) * mesh.pipeline + 1
    return min(chunks, micro_batches * mesh.stagesPerProcess) * layers_of_chunk


def _activations(workload: Workload, mesh: Mesh, tokens: int, layers_in_flight: int) -> int:
    all_of_layer = _kept(workload, mesh, ActivationCheckpointing.NONE)
    mode = workload.activation_checkpointing
    kept = layers_in_flight * _kept(workload, mesh, mode)
    if mode is not ActivationCheckpointing.NONE:
        kept += all_of_layer
    return -(-tokens * kept // mesh.tensor)


def _kept(workload: Workload, mesh: Mesh, mode: ActivationCheckpointing) -> int:
    """Return the bytes that a layer keeps for each token, before the tensor axis divides them."""
    shape, number = workload.shape, workload.compute_bytes
    hidden, feed_forward = shape.hidden_size, shape.feed_forward_size
    query = shape.heads * shape.head_size
    # Where the tensor axis has more processes than there are heads, neighbours hold the same one.
    key_value = 2 * max(shape.kv_heads, mesh.tensor) * shape.head_size * mesh.context
    if mode is ActivationCheckpointing.FULL:
        return number * hidden
    if mode is ActivationCheckpointing.SELECTIVE:
        products = 2 * hidden + query + key_value + 2 * feed_forward
        return number * (hidden + products + query) + 4 * shape.heads
    return (
        number * (2 * hidden + 3 * query + key_value + 4 * feed_forward)
        + 4 * ((4 if workload.computes_on_cpu else 2) * hidden + shape.heads)
        + number * shape.heads * _kept_probabilities(workload)
        + 4 * (2 if workload.computes_on_cpu else 1) * _normed_heads(shape)
    )


def _normed_heads(shape: ModelShape) -> int:
    """Return the elements of the queries and keys that are normed, for each token."""
    return (shape.heads + shape.kv_heads) * shape.head_size * shape.qk_norm


def _kept_probabilities(workload: Workload) -> int:
    """Return the probabilities that attention keeps for each token and head."""
    length = workload.shape.context_length
    if not workload.computes_on_cpu or length > LONGEST_KEPT_PROBABILITIES:
        return 0
    return (length + min(length, _BLOCK_ROWS)) // 2


def _logits(workload: Workload, mesh: Mesh, tokens: int) -> int:
    copy = 4 if workload.precision is Precision.BFLOAT16 else 0
    each = workload.compute_bytes + copy + 4 + 4
    return -(-tokens * workload.shape.vocabulary_size * each // mesh.tensor)
