"""`spec.model`: how large the model is (vertical scaling)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from modelscaling.api.base import ApiModel, Count, Decimal, Quantity, Rule, quantity_rule
from modelscaling.api.dimension import (
    FeedForwardSize,
    Heads,
    HeadSize,
    HiddenSize,
    Layers,
    VocabularySize,
)
from modelscaling.api.growth_stage import GrowthStageSpec
from modelscaling.api.init_from import InitFromSpec
from modelscaling.api.lora import LoraSpec
from modelscaling.preset import PRESETS


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(
            f"expected one of {', '.join(PRESETS)}; for another shape set parameters, or layers, "
            f"hiddenSize, heads and feedForwardSize"
        )
    return name


Preset = Annotated[
    str, AfterValidator(_known_preset), Field(json_schema_extra={"enum": [*PRESETS]})
]
"""The name of a public model."""


class GrowthPolicy(StrEnum):
    """What a change of the shape of a model that has trained does."""

    PRESERVE = "Preserve"
    """The model grows so that it computes the same; other shapes are refused."""
    STACK = "Stack"
    """Layers are stacked as they are, and headSize and ropeTheta may change: the loss jumps."""
    FORBID = "Forbid"
    """Every change is refused."""


class GrowthSpec(ApiModel):
    """Growth is what a change of the model's shape does to a run that has trained."""

    mode: GrowthPolicy = GrowthPolicy.PRESERVE
    """Mode is Preserve, where the model grows so that it computes what it did and every shape that
    cannot be reached so is refused; Stack, where layers are stacked as they are and headSize and
    ropeTheta may change too, so that the loss jumps; or Forbid, where the shape stays."""

    schedule: Annotated[
        tuple[GrowthStageSpec, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Schedule is at how many tokens the run grows by itself, and to what; spec.model is the shape
    that it begins with."""

    rewarmup_steps: Annotated[Count, Field(ge=0, le=1_000_000)] = 0
    """RewarmupSteps is the number of steps after a growth, whether scheduled or by hand, in which
    the learning rate rises again from 0, linearly, to where training.schedule has it."""

    tolerance: Decimal | None = None
    """Tolerance is by how much the loss on the held-out samples may be higher right after the model
    has grown than right before, in nats a token; where vocabularySize grows from V to W, ln(W/V) is
    allowed beside it, which new tokens cost. Where it is higher by more, the run goes back to the
    model before. Defaults to 0.05 with Preserve. With Stack, where the loss jumps by nature, it has
    no default, and without it nothing is taken back."""

    rules = (
        Rule(
            expression="self.mode != 'Forbid' || !has(self.schedule) || self.schedule.size() == 0",
            message=(
                "schedule grows the model and mode={mode} keeps its shape; set mode to Preserve, "
                "or remove schedule"
            ),
            field="schedule",
        ),
        Rule(
            expression="!has(self.tolerance) || self.mode != 'Forbid'",
            message=(
                "tolerance={tolerance} is never looked at, as nothing grows with mode Forbid; "
                "remove it, or set mode to Preserve or Stack"
            ),
            field="tolerance",
        ),
    )


class ModelSpec(ApiModel):
    """Model is the shape of the decoder that is trained: a preset, or a number of parameters, or
    layers, hiddenSize, heads and feedForwardSize. A field beside a preset replaces the preset's
    value.
    """

    preset: Preset | None = None
    """Preset names a public model whose shape is taken, with what its family does differently
    from Llama; fields given beside it take precedence."""

    parameters: Quantity | None = None
    """Parameters is the size that is wished for, as an integer or with the suffix k, M, B or T; a
    shape within 3 % of it is solved for, with the vocabulary and the tables that the other fields
    say. Its proportions: hiddenSize / layers is 64 up to a hiddenSize of 2048, there are 32 layers
    up to 4096, and hiddenSize / layers is 128 above; feedForwardSize is 8/3 of hiddenSize; heads
    are 128 wide from a hiddenSize of 2048 on, 64 from 256 on, else 32 or 16."""

    layers: Layers | None = None
    """Layers is the number of transformer blocks. Parameters, compute and memory grow with it in
    proportion."""

    hidden_size: HiddenSize | None = None
    """HiddenSize is the width of the residual stream, in elements. Parameters grow with its
    square."""

    heads: Heads | None = None
    """Heads is the number of query heads in a layer."""

    kv_heads: Heads | None = None
    """KvHeads is the number of key and value heads in a layer (grouped-query attention); it
    divides heads. Defaults to heads."""

    head_size: HeadSize | None = None
    """HeadSize is the width of one head, in elements; it is even. Defaults to hiddenSize /
    heads."""

    feed_forward_size: FeedForwardSize | None = None
    """FeedForwardSize is the width of the SwiGLU feed-forward part, in elements."""

    vocabulary_size: VocabularySize | None = None
    """VocabularySize is the number of token ids that the model knows; every id that the tokenizer
    yields is below it. Defaults to 256 for the Byte tokenizer."""

    context_length: Annotated[Count, Field(ge=2, le=1048576)] | None = None
    """ContextLength is the length of a training sample, in tokens. The cost of attention grows
    with its square. Defaults to the preset's, else to 1024."""

    tied_embeddings: bool | None = None
    """TiedEmbeddings makes the output head share the input embedding's table, which saves
    vocabularySize × hiddenSize parameters. Defaults to the preset's, else to true."""

    rope_theta: Decimal | None = None
    """RopeTheta is the base of the rotary position embedding's wavelengths. Defaults to the
    preset's, else to 10000."""

    growth: GrowthSpec = GrowthSpec()
    """Growth is what a change of the shape does to a run that has trained."""

    init_from: InitFromSpec | None = None
    """InitFrom says whose weights the run begins with; without it they are drawn. It is read once,
    and never again once the run has a checkpoint of its own. It cannot be changed."""

    lora: LoraSpec | None = None
    """Lora trains small matrices beside those of the model, which stay as they are. Such a run does
    not grow. It cannot be changed."""

    immutable = (
        ("initFrom", "create a new ModelScaling to begin with other weights"),
        ("lora", "create a new ModelScaling with initFrom to train on with other adapters"),
    )

    rules = (
        Rule(
            expression=(
                "has(self.preset) || has(self.parameters) || (has(self.layers) && "
                "has(self.hiddenSize) && has(self.heads) && has(self.feedForwardSize))"
            ),
            message=(
                "model needs a size; set preset, or parameters, or all of layers, hiddenSize, "
                "heads and feedForwardSize"
            ),
            field="",
        ),
        quantity_rule("parameters"),
        Rule(
            expression="!has(self.lora) || has(self.initFrom)",
            message=(
                "lora of rank={lora.rank} trains beside weights that stay as they are, and without "
                "initFrom these would be draws; give initFrom, or remove lora"
            ),
            field="lora",
        ),
        Rule(
            expression=(
                "!has(self.parameters) || !(has(self.preset) || has(self.layers) || "
                "has(self.hiddenSize) || has(self.heads) || has(self.kvHeads) || "
                "has(self.headSize) || has(self.feedForwardSize))"
            ),
            message=(
                "parameters={parameters} decides the size alone; remove preset, layers, "
                "hiddenSize, heads, kvHeads, headSize and feedForwardSize, or remove parameters"
            ),
            field="parameters",
        ),
        Rule(
            expression="!has(self.heads) || !has(self.kvHeads) || self.heads % self.kvHeads == 0",
            message=(
                "heads={heads} is not divisible by kvHeads={kvHeads}; set kvHeads to a "
                "divisor of {heads}"
            ),
            field="kvHeads",
        ),
        Rule(
            expression=(
                "has(self.headSize) || has(self.preset) || !has(self.heads) || "
                "!has(self.hiddenSize) || self.hiddenSize % self.heads == 0"
            ),
            message=(
                "hiddenSize={hiddenSize} is not divisible by heads={heads}; set heads to "
                "a divisor of {hiddenSize}, or set headSize"
            ),
            field="hiddenSize",
        ),
        Rule(
            expression="!has(self.headSize) || self.headSize % 2 == 0",
            message=(
                "headSize={headSize} is odd; rotary embeddings turn pairs of elements, make it even"
            ),
            field="headSize",
        ),
        Rule(
            expression=(
                "has(self.headSize) || has(self.preset) || !has(self.heads) || "
                "!has(self.hiddenSize) || self.hiddenSize % self.heads != 0 || "
                "(self.hiddenSize / self.heads) % 2 == 0"
            ),
            message=(
                "hiddenSize={hiddenSize} / heads={heads} is an odd head size; rotary "
                "embeddings turn pairs of elements, change either"
            ),
            field="hiddenSize",
        ),
    )
