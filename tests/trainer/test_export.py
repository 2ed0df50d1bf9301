from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelscaling_trainer.hugging_face.names import their_name
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoints import SHAPE, make_state, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def _export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelscaling.cli.main", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("source", ["runs", "runs/step-00000007"], ids=["a run", "a checkpoint"])
def test_a_checkpoint_is_exported_as_what_transformers_loads(source: str, tmp_path: Path) -> None:
    state = make_state()
    save(tmp_path / "runs", make_state(seed=1), counters=Counters(step=3))
    save(tmp_path / "runs", state, counters=Counters(step=7))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")

    done = _export(tmp_path / source, tmp_path / "out", "--tokenizer", tokenizer, "--json")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "output": str(tmp_path / "out"),
        "step": 7,
        "parameters": SHAPE.parameters(),
        "architecture": "LlamaForCausalLM",
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in state.items():
        prefix, _, weight = name.partition(".")
        if prefix == "model":
            assert torch.equal(tensor, model.get_parameter(their_name(weight)))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_directory_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    done = _export(tmp_path, tmp_path / "out")

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {str(tmp_path)!r} has no checkpoint; give the directory")
    assert not (tmp_path / "out").exists()
