"""What all parts of `status` have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from modelscaling.api.base import ApiModel

Number = Annotated[str, Field(max_length=32)]
"""A number as a decimal string: Kubernetes keeps no floats."""

MESSAGE_MAX_LENGTH = 4096


class StatusModel(ApiModel):
    """The base of the status' types; unknown fields of a newer version are ignored."""

    model_config = ConfigDict(extra="ignore")
