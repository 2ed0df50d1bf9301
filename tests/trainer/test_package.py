from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["", ".errors", ".figures", ".group", ".request"])
def test_what_the_agent_imports_brings_no_torch(module: str) -> None:
    check = f"import sys, modelscaling_trainer{module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0
