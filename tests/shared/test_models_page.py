from __future__ import annotations

import re
from pathlib import Path

from modelscaling.preset import PRESETS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_on_models_names_every_preset_and_no_other() -> None:
    (table,) = re.findall(r"\| family .*?\n\n", PAGE.read_text(), flags=re.DOTALL)

    named = [name for name in re.findall(r"`([^`]+)`", table) if name != "llama3"]

    assert named == [*PRESETS]
