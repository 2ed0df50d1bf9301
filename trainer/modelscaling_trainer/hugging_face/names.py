"""What transformers calls the weights of the decoder."""

from __future__ import annotations

from modelscaling.layout import HEAD

_PREFIX = "model."


def their_name(name: str) -> str:
    """Return transformers' name of a weight, from its name in modelscaling.layout."""
    return name if name == HEAD else _PREFIX + name
