from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# In a process of its own: the setting stays for the life of a process.
_CHECK = """
import resource
from modelscaling_trainer.memory import keep_freed_memory
import torch
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until alignment has found its place
    torch.ones(16 << 20)
before = faults()
for _ in range(10):
    torch.ones(16 << 20)
print(faults() - before)
"""


def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], capture_output=True, text=True, timeout=60, check=True
    )

    # 64 MiB touched anew ten times would be 163,840 faults of 4 KiB.
    assert int(done.stdout) < 1000
