"""Training tokens against parameters.

Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models") find that model and data
should grow alike, at about 20 tokens a parameter. They count all parameters, the embeddings
included (Pearce and Song 2024 show that this is where they differ from Kaplan et al. 2020), and
measured it on web text in subword tokens. The loss is flat around the optimum, and the ratio
differs by a factor of two between their own three estimates and later fits, so nothing is made of
a smaller difference. Who uses a model much trains a smaller one longer, on purpose: Sardana et al.
2024 ("Beyond Chinchilla-Optimal").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.api.advice import Advice, AdviceReason, AdviceType
from modelscaling.quantity import format_quantity

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration

OPTIMAL_TOKENS_PER_PARAMETER = 20
TOLERANCE = 2
"""Factor around the optimum that is as good as it, as far as anybody knows."""

_SOURCE = "Hoffmann et al. 2022, arXiv:2203.15556"
_SOURCE_OF_LONGER = "Hoffmann et al. 2022, arXiv:2203.15556; Sardana et al. 2024, arXiv:2401.00448"


def advise_balance(configuration: RunConfiguration) -> Advice | None:
    """Return what the planned tokens and the parameters of a run say; known before it starts. None
    where it begins with weights of a model that is trained already, on tokens that are not known.
    """
    if configuration.init_from is not None:
        return None
    parameters = configuration.model.parameters()
    tokens = configuration.training.total_steps * configuration.tokens_per_step
    ratio = tokens / parameters
    numbers = (
        f"{format_quantity(tokens)} tokens for {format_quantity(parameters)} parameters "
        f"(embeddings included) are {ratio:.3g} tokens a parameter; compute-optimal are about "
        f"{OPTIMAL_TOKENS_PER_PARAMETER} subword tokens"
    )
    optimal = format_quantity(OPTIMAL_TOKENS_PER_PARAMETER * parameters)
    if ratio * TOLERANCE < OPTIMAL_TOKENS_PER_PARAMETER:
        return _advice(
            AdviceReason.UNDER_TRAINED,
            f"{numbers}, here {optimal}. A smaller model on more tokens would reach a lower loss "
            f"with the same compute.",
        )
    if ratio > OPTIMAL_TOKENS_PER_PARAMETER * TOLERANCE:
        return _advice(
            AdviceReason.OVER_TRAINED,
            f"{numbers}, here {optimal}. A larger model on fewer tokens would reach a lower loss "
            f"with the same compute; a small one that is trained longer is cheaper to use, which "
            f"may be why.",
            source=_SOURCE_OF_LONGER,
        )
    return _advice(AdviceReason.COMPUTE_OPTIMAL, f"{numbers}.")


def _advice(reason: AdviceReason, message: str, *, source: str = _SOURCE) -> Advice:
    return Advice(type=AdviceType.BALANCE, reason=reason, message=message, source=source)
