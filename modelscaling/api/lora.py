"""`spec.model.lora`: small matrices that are trained beside weights that stay as they are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Decimal, Rule


class LoraTarget(StrEnum):
    """A matrix of each layer, by transformers' name."""

    QUERY = "q_proj"
    KEY = "k_proj"
    VALUE = "v_proj"
    OUTPUT = "o_proj"
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


class LoraSpec(ApiModel):
    """Lora trains two small matrices A and B beside each matrix W of the targets, which computes
    as W + alpha / rank · B·A, and nothing else (Hu et al. 2021). B begins at 0, so that the first
    loss is that of initFrom.
    """

    rank: Annotated[Count, Field(ge=1, le=1024)] = 8
    """Rank is the number of rows of A and of columns of B."""

    alpha: Decimal = "16"
    """Alpha scales what B·A adds, by alpha / rank."""

    targets: Annotated[
        tuple[LoraTarget, ...],
        Field(min_length=1, max_length=7, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = tuple(LoraTarget)
    """Targets is the matrices of each layer that have adapters, by default all."""

    rules = (
        Rule(
            expression="double(self.alpha) > 0.0",
            message='alpha={alpha} must be above 0, such as "16"',
            field="alpha",
        ),
    )
