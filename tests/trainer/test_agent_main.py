from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def test_a_signal_in_the_first_moments_is_not_lost() -> None:
    """The handler is there before the slow imports: proven by a signal from within them."""
    program = (
        "import os, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'modelscaling_trainer.agent.service':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from modelscaling_trainer.agent.__main__ import main\n"
        "main()\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert ended.returncode == ExitCode.INTERRUPTED


def test_without_settings_the_agent_ends_as_a_bad_configuration(tmp_path: Path) -> None:
    report = tmp_path / "termination"
    environment = {**os.environ, "MODELSCALING_TERMINATION_LOG": str(report)}

    ended = subprocess.run(
        [sys.executable, "-m", "modelscaling_trainer.agent"],
        env=environment,
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == ExitCode.CONFIGURATION
    assert "is not set; the operator sets it in each pod" in ended.stderr
    assert '"reason":"BadSettings"' in report.read_text()
