"""Specs for tests: a small legal one, and changes to it by dotted path."""

from __future__ import annotations

import copy
from typing import Any

_SMALL: dict[str, Any] = {
    "model": {
        "layers": 2,
        "hiddenSize": 64,
        "heads": 4,
        "feedForwardSize": 128,
        "contextLength": 64,
    },
    "data": {"text": {"path": "/data/*.txt"}},
    "training": {"tokens": "64k", "globalBatchSize": 8},
}


def make_spec(**changes: Any) -> dict[str, Any]:
    """Return the small spec with changes such as `model__heads=3`; None removes the field."""
    spec = copy.deepcopy(_SMALL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        level = spec
        for parent in parents:
            level = level.setdefault(parent, {})
        if value is None:
            level.pop(last, None)
        else:
            level[last] = value
    return spec
