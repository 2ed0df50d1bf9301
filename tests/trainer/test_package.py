from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.process
@pytest.mark.parametrize("module", ["torch._dynamo", "torch.distributed.checkpoint", "sympy"])
def test_a_worker_starts_without_what_it_does_not_need_at_once(module: str) -> None:
    imports = "import sys, modelscaling_trainer.worker, modelscaling_trainer.run"
    check = f"{imports}; sys.exit({module!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


@pytest.mark.process
def test_laying_out_a_whole_model_imports_no_compiler() -> None:
    check = """
import sys
import torch
from modelscaling.mesh import Mesh
from modelscaling_trainer.model_part import ModelPart
from tests.trainer.runs import make_run

part = ModelPart(
    make_run(""), mesh=Mesh(), rank=0, compute_dtype=torch.float32, device=torch.device("cpu")
)
part.spread(None)
sys.exit("sympy" in sys.modules or "torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", check], timeout=90, check=False).returncode == 0


@pytest.mark.parametrize(
    "module",
    ["", ".errors", ".figures", ".group", ".request", ".zygote_protocol", ".agent.service"],
)
def test_what_the_agent_imports_brings_no_torch(module: str) -> None:
    check = f"import sys, modelscaling_trainer{module}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0
