"""What `modelscaling grow` hands to the trainer, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.growth.mode import GrowthMode
from modelscaling.local_growth import LocalGrowth

if TYPE_CHECKING:
    from pathlib import Path

LARGER = {"layers": 3, "hiddenSize": 31, "heads": 6, "kvHeads": 3, "feedForwardSize": 50}


def make_work(source: Path, target: Path, **changes: Any) -> LocalGrowth:
    fields = {
        "source": source,
        "target": target,
        "shape": LARGER,
        "mode": GrowthMode.PRESERVE,
        "seed": 5,
        "noise": 0.0,
        "check": None,
        "tokenizer": None,
        "is_json": False,
    }
    return LocalGrowth.model_validate(fields | changes)
