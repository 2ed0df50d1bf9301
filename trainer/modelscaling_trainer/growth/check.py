"""What growth has done to a model, on real text: how far logits and loss are from the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelscaling.layout import Region
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.model.decoder import Decoder, cross_entropy_sum

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling.shape import ModelShape
    from modelscaling_trainer.data.tokenizer import Tokenizer
    from modelscaling_trainer.weight_source import WeightSource

_MOST_TOKENS = 4096
_BYTES_PER_TOKEN = 16
"""More than texts have: so much is read of a text to have enough tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same text, in float32."""

    tokens: int
    largest_difference: float
    """Between logits of old tokens."""
    largest_logit: float
    """Of the old model."""
    loss_before: float
    """Nats a token."""
    loss_after: float


def read_tokens(path: Path, tokenizer: Tokenizer, shape: ModelShape) -> Tensor:
    """Return samples of the old model's context from the beginning of a text (B, T + 1).

    Raises:
        ConfigurationError: it cannot be read, is too short, or has tokens that the model lacks.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_TOKENS * _BYTES_PER_TOKEN)
    except OSError as error:
        raise ConfigurationError("NoData", f"--check: {error}") from error
    ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
    length = min(shape.context_length + 1, len(ids))
    if length < 2:  # noqa: PLR2004 - one token and the next
        raise ConfigurationError("NoData", f"--check: {str(path)!r} has fewer than 2 tokens")
    samples = max(1, min(len(ids), _MOST_TOKENS) // length)
    ids_BT = ids[: samples * length].view(samples, length)  # noqa: N806 - with its shape
    if ids_BT.max() >= shape.vocabulary_size:
        raise ConfigurationError(
            "VocabularyTooSmall",
            f"--check: {str(path)!r} has the token {int(ids_BT.max())}, and the model knows "
            f"{shape.vocabulary_size}; give the --tokenizer that it was trained with",
        )
    return ids_BT


def compare(
    old: WeightSource,
    new: WeightSource,
    ids_BT: Tensor,  # noqa: N803
) -> Comparison:
    """Compare two models, of which one is in memory at a time.

    Raises:
        CheckpointError: one is damaged.
    """
    inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]  # noqa: N806
    before_BTV, after_BTV = _logits(old, inputs_BT), _logits(new, inputs_BT)  # noqa: N806
    known = before_BTV.shape[-1]
    count = targets_BT.numel()
    return Comparison(
        tokens=count,
        largest_difference=float((before_BTV - after_BTV[..., :known]).abs().max()),
        largest_logit=float(before_BTV.abs().max()),
        loss_before=float(cross_entropy_sum(before_BTV, targets_BT)) / count,
        loss_after=float(cross_entropy_sum(after_BTV, targets_BT)) / count,
    )


@torch.no_grad()
def _logits(source: WeightSource, ids_BT: Tensor) -> Tensor:  # noqa: N803
    decoder = Decoder(source.shape, compute_dtype=torch.float32)
    for name, parameter in decoder.weights().items():
        size = tuple(parameter.shape)
        parameter.copy_(source.read(name, Region((0,) * len(size), size)))
    logits_BTV: Tensor = decoder(ids_BT)  # noqa: N806
    return logits_BTV
