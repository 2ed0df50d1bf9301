"""The bounds of a model's dimensions, wherever the spec declares one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelscaling.api.base import Count

Layers = Annotated[Count, Field(ge=1, le=1024)]
HiddenSize = Annotated[Count, Field(ge=2, le=131072)]
Heads = Annotated[Count, Field(ge=1, le=1024)]
HeadSize = Annotated[Count, Field(ge=2, le=1024)]
FeedForwardSize = Annotated[Count, Field(ge=1, le=524288)]
VocabularySize = Annotated[Count, Field(ge=2, le=1048576)]
