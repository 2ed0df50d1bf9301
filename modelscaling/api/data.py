"""`spec.data`: what the model is trained on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field

from modelscaling.api.base import ApiModel, Decimal, Rule


class TextSource(ApiModel):
    """Text is files whose text is joined, in the order of their paths, into one stream of
    tokens.
    """

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Path is a glob inside the pod, where ** stands for any number of directories: .jsonl (the
    field `text` of each line), .bin (tokens as little-endian uint16, or uint32 where
    vocabularySize exceeds 65536), or any other file as UTF-8 text. A pattern that matches no file
    fails the run at once."""


class BuiltInTokenizer(StrEnum):
    """Tokenizers that need no file."""

    BYTE = "Byte"


class TokenizerFile(ApiModel):
    """A tokenizer in a file."""

    file: Annotated[str, Field(min_length=1, max_length=4096)]
    """File is the path, inside the pod, of a Hugging Face tokenizer.json."""


def _is_a_tokenizer(value: object) -> object:
    """Refuse what is neither; a union's own message would name our types instead of the choices."""
    file = value.get("file") if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(value, TokenizerFile) or value in [*BuiltInTokenizer] or isinstance(file, str):
        return value
    raise ValueError("expected Byte, or {file: PATH} with the path of a tokenizer.json")


class DataSpec(ApiModel):
    """Data is what the model is trained on."""

    text: TextSource
    """Text is files whose text is joined, in the order of their paths, into one stream of
    tokens."""

    tokenizer: Annotated[
        BuiltInTokenizer | TokenizerFile,
        BeforeValidator(_is_a_tokenizer),
        Field(
            json_schema_extra={
                "x-kubernetes-preserve-unknown-fields": True,
                "anyOf": [{"enum": ["Byte"]}, {"required": ["file"]}],
            }
        ),
    ] = BuiltInTokenizer.BYTE
    """Tokenizer is Byte (one token a byte, vocabulary 256), or {file: PATH} with a Hugging Face
    tokenizer.json."""

    validation_fraction: Decimal = "0.02"
    """ValidationFraction is the part of the samples, from 0 to 0.5, that is held out and only
    measured. Which samples is a function of training.seed."""

    rules = (
        Rule(
            expression="double(self.validationFraction) <= 0.5",
            message=(
                "validationFraction={validationFraction} is above 0.5; the held-out part "
                "must leave most of the data to train on"
            ),
            field="validationFraction",
        ),
    )
