"""`spec.model.initFrom`: the weights that a run begins with, instead of draws."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Rule


class HuggingFaceSource(ApiModel):
    """HuggingFace is a model as Hugging Face publishes them."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Path is a directory inside the pod, such as on a volume that spec.template mounts, with
    config.json, the weights as safetensors and mostly a tokenizer.json, which must then be that of
    data.tokenizer.file."""


class CheckpointSource(ApiModel):
    """Checkpoint is one that a run has saved."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Path is a directory inside the pod, such as on a volume that spec.template mounts: a
    checkpoint, or that of a run, of which the newest checkpoint is taken."""


class RunSource(ApiModel):
    """ModelScaling is another run."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name is that of a ModelScaling in the same namespace with the same checkpoint.volume. It is
    awaited until it is Complete, or Failed or Suspended with a checkpoint; its newest checkpoint
    is taken."""


class InitFromSpec(ApiModel):
    """InitFrom says whose weights the run begins with: its optimizer and its steps begin at 0.
    Weights of a smaller model are grown to the declared one, so that it computes the same.
    """

    hugging_face: HuggingFaceSource | None = None
    """HuggingFace is a model as Hugging Face publishes them."""

    checkpoint: CheckpointSource | None = None
    """Checkpoint is one that a run has saved."""

    model_scaling: RunSource | None = None
    """ModelScaling is another run."""

    rules = (
        Rule(
            expression=(
                "(has(self.huggingFace) ? 1 : 0) + (has(self.checkpoint) ? 1 : 0) + "
                "(has(self.modelScaling) ? 1 : 0) == 1"
            ),
            message=(
                "initFrom takes exactly one of huggingFace, checkpoint and modelScaling; give one"
            ),
            field="",
        ),
    )
