"""Runs that begin with other weights, in real processes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.data.corpus import open_corpus
from modelscaling_trainer.data.sample_order import global_batch
from modelscaling_trainer.data.samples import Samples
from modelscaling_trainer.data.tokenizer import open_tokenizer
from tests.trainer.families import draw, make_transformers_model
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import Result, results, start, train_together

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32."""
WORDS = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"scale": 0, "model": 1, "?": 2}, "unk_token": "?"},
    "pre_tokenizer": {"type": "Whitespace"},
}
"""A tokenizer.json."""
EVERY_STEP = {"checkpoint": {"every_steps": 1, "keep": 1}}


def _train(
    run: RunConfiguration, mesh: Mesh, scratch: Path, *, steps: int, directory: Path | None = None
) -> list[Result]:
    workers = start(
        mesh.size, run, scratch=scratch, stop_at_step=steps, checkpoint_directory=directory
    )
    try:
        train_together(workers, mesh=mesh)
        return results(workers)
    finally:
        for worker in workers:
            worker.kill()


def _from_hugging_face(path: Path, data: Path, **changes: Any) -> RunConfiguration:
    init_from = {"format": "HuggingFace", "path": str(path)}
    return make_run(data, init_from=init_from, **changes)


@torch.no_grad()
def _loss_of_the_first_batch(model: Any, run: RunConfiguration, scratch: Path) -> float:
    """Return the loss of transformers' model on the samples of a run's first step."""
    corpus = open_corpus(run.data, vocabulary_size=run.model.vocabulary_size, scratch=scratch)
    samples = Samples(
        corpus,
        context_length=run.model.context_length,
        validation_fraction=run.data.validation_fraction,
        seed=run.training.seed,
    )
    batch = global_batch(
        seed=run.training.seed,
        step=0,
        batch_size=run.training.global_batch_size,
        samples=samples.training_count,
    )
    inputs, targets = samples.training(batch)
    logits = model(inputs).logits.float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"model__layers": 4, "model__feed_forward_size": 96}, {"model__hidden_size": 40}],
    ids=["as is", "grown", "padded"],
)
def test_a_mesh_begins_with_the_loss_of_transformers_model(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    data = write_text(tmp_path / "data")
    model = make_transformers_model(make_run(data).model)
    draw(model)
    model.save_pretrained(tmp_path / "model")
    run = _from_hugging_face(tmp_path / "model", data, **changes)

    ranks = _train(run, Mesh(dataShard=2, tensor=2), tmp_path, steps=1)

    assert [(rank.outcome, rank.message) for rank in ranks] == [("Complete", "")] * 4
    expected = _loss_of_the_first_batch(model, run, tmp_path)
    for rank in ranks:
        assert rank.losses == pytest.approx([expected], abs=AGREEMENT)


@pytest.mark.parametrize("hidden_size", [32, 40], ids=["as is", "padded"])
def test_a_run_that_has_a_checkpoint_of_its_own_needs_the_others_no_more(
    hidden_size: int, tmp_path: Path
) -> None:
    data = write_text(tmp_path / "data")
    model = make_transformers_model(make_run(data).model)
    draw(model)
    model.save_pretrained(tmp_path / "model")
    run = _from_hugging_face(tmp_path / "model", data, model__hidden_size=hidden_size, **EVERY_STEP)
    [begun] = _train(run, Mesh(), tmp_path, steps=2, directory=tmp_path / "run")
    shutil.rmtree(tmp_path / "model")

    [resumed] = _train(run, Mesh(), tmp_path, steps=3, directory=tmp_path / "run")

    assert [progress.step for progress in begun.progress] == [1, 2]
    assert [progress.step for progress in resumed.progress] == [3]


def test_a_run_writes_what_tokenizer_it_has_and_resumes_with_any(tmp_path: Path) -> None:
    data = write_text(tmp_path / "data")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(WORDS))
    own = make_run(data, **EVERY_STEP)
    other = make_run(data, data__tokenizer={"file": str(tokenizer)}, **EVERY_STEP)

    found = []
    for run, steps in [(own, 1), (other, 2)]:
        [ended] = _train(run, Mesh(), tmp_path, steps=steps, directory=tmp_path / "run")
        newest = find_newest(tmp_path / "run")
        assert newest is not None
        found.append(([progress.step for progress in ended.progress], newest.tokenizer))

    assert found == [([1], "byte"), ([2], open_tokenizer(other.data.tokenizer).identity)]
    source = {"format": "Checkpoint", "path": str(tmp_path / "run")}
    [refused] = _train(make_run(data, init_from=source), Mesh(), tmp_path, steps=1)
    assert refused.error == "ConfigurationError"
    assert "and this run has the tokenizer Byte; set data.tokenizer" in refused.message


def test_a_directory_that_is_not_there_fails_the_run_on_every_rank(tmp_path: Path) -> None:
    run = _from_hugging_face(tmp_path / "nowhere", write_text(tmp_path / "data"))

    ranks = _train(run, Mesh(dataReplicate=2), tmp_path, steps=1)

    assert [rank.error for rank in ranks] == ["ConfigurationError"] * 2
    assert "nowhere/config.json" in ranks[0].message
