"""`modelscaling grow` on directories of Hugging Face's: transformers computes what is written."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM

from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import UnreachableShapeError
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.growth.offline import grow
from modelscaling_trainer.hugging_face import writing
from modelscaling_trainer.row_blocks import row_blocks
from tests.growth.growing import make_ids, make_shape
from tests.growth.offline_work import LARGER, make_work
from tests.trainer.families import FAMILIES, draw, make_transformers_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SHAPE = make_shape(vocabulary_size=64)
DOUBLE = {"layers": 3, "hiddenSize": 48, "vocabularySize": 70}


def _save(
    path: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """Write a model as transformers does."""
    model = make_transformers_model(
        make_shape(**{"vocabulary_size": 64} | FAMILIES[family] | changes)
    )
    draw(model)
    model.to(dtype).save_pretrained(path)
    return path


@torch.no_grad()
def _logits(path: Path) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits: Tensor = model(make_ids(SHAPE)).logits
    return logits


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_of_the_grown_model_what_it_did(
    family: str, tmp_path: Path, *, is_tied: bool
) -> None:
    small = _save(tmp_path / "small", family, tied_embeddings=is_tied)
    # Heads would change what the norm of all of them together is.
    shape = {"layers": 3, "feedForwardSize": 50} if family == "olmo-2" else LARGER

    done = grow(make_work(small, tmp_path / "large", shape=shape))

    before, after = _logits(small), _logits(tmp_path / "large")
    assert done.path == tmp_path / "large"
    assert AutoConfig.from_pretrained(done.path).num_hidden_layers == 3
    assert (before - after).abs().max() <= 2e-5 * before.abs().max()
    assert before.abs().max() > 0.1


@pytest.mark.parametrize("mode", GrowthMode)
def test_it_is_the_same_model_written_some_rows_at_a_time(
    mode: GrowthMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = _save(tmp_path / "small")
    work = make_work(small, tmp_path / "whole", mode=mode, noise=0.3, shape=DOUBLE)
    grow(work)
    monkeypatch.setattr(writing, "row_blocks", partial(row_blocks, most_elements=100))
    grow(work.model_copy(update={"target": tmp_path / "rows"}))

    whole, rows = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rows")
    )
    assert whole == rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_stay_of_their_type_and_bitwise_growth_is_bitwise(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    small = _save(tmp_path / "small", dtype=dtype)

    grow(make_work(small, tmp_path / "large", shape={"layers": 4}))

    written = AutoModelForCausalLM.from_pretrained(tmp_path / "large", dtype="auto")
    assert written.dtype == (torch.float32 if dtype is torch.float64 else dtype)
    if dtype is not torch.float64:
        assert torch.equal(_logits(small), _logits(tmp_path / "large"))


def test_what_says_how_the_model_is_used_comes_along(tmp_path: Path) -> None:
    small = _save(tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    (small / "config.json").write_text(json.dumps(config | tokens))
    kept = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in kept | {"README.md"}:
        (small / name).write_text(f'{{"of": "{name}"}}')

    grow(make_work(small, tmp_path / "large"))

    written = {file.name: file for file in (tmp_path / "large").iterdir()}
    assert written.keys() == kept | {"config.json", "model.safetensors"}
    assert all(written[name].read_text() == f'{{"of": "{name}"}}' for name in kept)
    grown = json.loads(written["config.json"].read_text())
    assert {name: grown[name] for name in tokens} == tokens


def test_a_text_is_read_with_the_directorys_own_tokenizer(tmp_path: Path) -> None:
    small = _save(tmp_path / "small")
    words = {"a": 0, "b": 1, "c": 2}
    Tokenizer(BPE(words, [])).save(str(small / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("abc" * 20)  # as bytes, the model knows none of these

    done = grow(make_work(small, tmp_path / "large", check=text))

    assert done.comparison
    assert done.comparison.tokens == 3 * 16
    assert done.comparison.largest_difference <= 2e-5 * done.comparison.largest_logit


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": 1}, UnreachableShapeError, "layers: 1 is less than the 2"),
        ({"layers": 2}, ConfigurationError, "the model has this shape already"),
    ],
)
def test_a_shape_that_cannot_be_leaves_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    small = _save(tmp_path / "small")

    with pytest.raises(error, match=message):
        grow(make_work(small, tmp_path / "large", shape=changes))

    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_directory_that_lacks_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    small = _save(tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    with pytest.raises(ConfigurationError, match=r"it lacks model\.layers\.2\.input_layernorm"):
        grow(make_work(small, tmp_path / "large"))

    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_stacked_model_is_written_too_and_says_that_it_computes_something_else(
    tmp_path: Path,
) -> None:
    small = _save(tmp_path / "small")

    done = grow(make_work(small, tmp_path / "large", mode=GrowthMode.STACK, shape={"layers": 4}))

    assert done.plan.exactness.value == "Inexact"
    assert not torch.allclose(_logits(small), _logits(tmp_path / "large"), rtol=1e-2)


@pytest.mark.process
def test_the_command_names_what_it_wrote(tmp_path: Path) -> None:
    small = _save(tmp_path / "small")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "modelscaling.cli.main", "grow", str(small)),
            *(str(tmp_path / "large"), "--shape", "layers=5", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert content["output"] == str(tmp_path / "large")
    assert content["exactness"] == "Bitwise"
    assert torch.equal(_logits(small), _logits(tmp_path / "large"))
