"""The first weights of a run from a model that is trained already."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.api.data import TokenizerFile
from modelscaling.growth.mode import GrowthMode
from modelscaling.layout import Region, is_adapter, layout, weights
from modelscaling.local_growth import LocalGrowth
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.weights import CheckpointWeights
from modelscaling_trainer.data.tokenizer import open_tokenizer
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.growth.offline import grow
from modelscaling_trainer.hugging_face.writing import write_directory
from modelscaling_trainer.model.initial_weights import initial_values
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.transfer import open_transfer
from tests.trainer.checkpoints import make_shape, make_state, save
from tests.trainer.families import FAMILIES
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling.configuration import RunConfiguration

SMALL = make_shape()
SEED = 7
LORA = {"rank": 2, "alpha": 6.0, "targets": ("v_proj", "down_proj")}
MESHES = [Mesh(), Mesh(dataShard=2, tensor=2), Mesh(pipeline=2, dataShard=3)]
TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


def _changed(shape: ModelShape, **changes: Any) -> ModelShape:
    return ModelShape.from_fields(asdict(shape) | changes)


def _run(source: str, path: Path, shape: ModelShape = SMALL, **changes: Any) -> RunConfiguration:
    init_from = {"format": source, "path": str(path)}
    return make_run(
        "unused", model=asdict(shape), init_from=init_from, training__seed=SEED, **changes
    )


def _filled(run: RunConfiguration, mesh: Mesh, rank: int) -> dict[str, Shard]:
    """Return what a process of a mesh begins with."""
    transfer = open_transfer(run)
    assert transfer is not None
    shards = {
        name: Shard(torch.full(piece.region.size, torch.nan), piece)
        for name, piece in layout(run.model, mesh, rank).items()
    }
    transfer.fill(shards, seed=SEED)
    return shards


def _check_parts(run: RunConfiguration, mesh: Mesh, expected: dict[str, Tensor]) -> None:
    seen = set()
    for rank in range(mesh.size):
        for name, shard in _filled(run, mesh, rank).items():
            region = shard.piece.region
            index = tuple(
                slice(start, start + length)
                for start, length in zip(region.offset, region.size, strict=True)
            )
            assert torch.equal(expected[name][index], shard.tensor), f"{name} on rank {rank}"
            seen.add(name)
    assert seen == set(expected)


def _weights(directory: Path, shape: ModelShape) -> dict[str, Tensor]:
    """Return the weights of the newest checkpoint there."""
    found = catalog.find_newest(directory)
    assert found is not None
    pieces = layout(shape, Mesh(), 0)
    shards = {
        f"model.{name}": Shard(torch.empty(size), pieces[name])
        for name, size in weights(shape).items()
    }
    found.load(shards)
    return {name.removeprefix("model."): shard.tensor for name, shard in shards.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    save(directory, make_state(SMALL), mesh=Mesh(dataShard=3))
    return directory


def _hugging_face(path: Path, shape: ModelShape, *, tokenizer: Path | None = None) -> Path:
    """Write a model of a shape as Hugging Face publishes them."""
    save(path / "run", make_state(shape), shape=shape)
    found = catalog.find_newest(path / "run")
    assert found is not None
    companions = {"tokenizer.json": tokenizer} if tokenizer else {}
    write_directory(CheckpointWeights(found), path / "model", companions=companions)
    return path / "model"


def test_weights_of_a_run_that_names_none_are_drawn() -> None:
    assert open_transfer(make_run("unused")) is None


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("below", ["", "step-00000001"], ids=["a run", "a checkpoint"])
def test_a_process_begins_with_its_part_of_a_checkpoint(
    mesh: Mesh, below: str, trained: Path
) -> None:
    _check_parts(_run("Checkpoint", trained / below), mesh, _weights(trained, SMALL))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_process_begins_with_its_part_of_a_directory_of_hugging_face(
    mesh: Mesh, tmp_path: Path
) -> None:
    shape = _changed(SMALL, **FAMILIES["qwen2.5"], context_length=64)
    path = _hugging_face(tmp_path, shape)
    shorter = _changed(shape, context_length=8)

    _check_parts(_run("HuggingFace", path, shorter), mesh, _weights(tmp_path / "run", shape))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("hidden_size", [40, 25], ids=["cloned", "padded"])
def test_what_grows_on_the_way_is_bitwise_what_grows_offline(
    mesh: Mesh, hidden_size: int, trained: Path, tmp_path: Path
) -> None:
    changes = {
        "layers": 5,
        "hiddenSize": hidden_size,
        "heads": 8,
        "kvHeads": 4,
        "feedForwardSize": 50,
        "vocabularySize": 41,
        "contextLength": 16,
    }
    offline = grow(
        LocalGrowth(
            source=trained,
            target=tmp_path / "grown",
            shape=changes,
            mode=GrowthMode.PRESERVE,
            seed=SEED,
            noise=0.0,
            check=None,
            tokenizer=None,
            is_json=False,
        )
    )
    large = offline.plan.shape

    _check_parts(_run("Checkpoint", trained, large), mesh, _weights(tmp_path / "grown", large))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"vocabulary_size": 30},
            r"vocabularySize: 30 is less than the 37 of the trained model",
            id="a smaller vocabulary",
        ),
        pytest.param(
            {"qkv_bias": True, "tied_embeddings": False},
            r"tiedEmbeddings: False is not the True of .*; qkvBias: True is not the False",
            id="another family",
        ),
        pytest.param({"rope_theta": 5e5}, "ropeTheta: 500000 is not the 10000", id="another base"),
    ],
)
def test_a_model_that_cannot_become_the_declared_one_is_refused(
    changes: dict[str, Any], message: str, trained: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_transfer(_run("Checkpoint", trained, _changed(SMALL, **changes)))

    assert caught.value.reason == "OtherModel"
    assert str(trained) in caught.value.message


def test_a_directory_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"initFrom names '.*', which is no checkp"):
        open_transfer(_run("Checkpoint", tmp_path / "nowhere"))


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path, make_state(SMALL))
    (description,) = tmp_path.glob("step-*/checkpoint.json")
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"format": catalog.FORMAT + 1}))

    with pytest.raises(ConfigurationError, match="reads up to") as caught:
        open_transfer(_run("Checkpoint", tmp_path))

    assert caught.value.reason == "CheckpointTooNew"


def test_a_checkpoint_that_is_damaged_is_named(tmp_path: Path) -> None:
    save(tmp_path, make_state(SMALL))
    (part,) = tmp_path.glob("step-*/part-*")
    part.write_bytes(b"\0" * part.stat().st_size)

    with pytest.raises(CheckpointError, match="is damaged"):
        _filled(_run("Checkpoint", tmp_path), Mesh(), 0)


def test_another_tokenizer_than_that_of_the_weights_is_refused(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(TOKENIZER))
    path = _hugging_face(tmp_path, SMALL, tokenizer=tokenizer)
    own = {"file": str(tokenizer)}

    assert open_transfer(_run("HuggingFace", path, data__tokenizer=own)) is not None
    with pytest.raises(ConfigurationError, match=r"set data\.tokenizer\.file to"):
        open_transfer(_run("HuggingFace", path))


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerFile:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return TokenizerFile(file=str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("vocabulary_size", [37, 300], ids=["as it is", "grown"])
def test_a_checkpoint_of_another_tokenizer_is_refused(
    vocabulary_size: int, tokenizer: TokenizerFile, tmp_path: Path
) -> None:
    of_file = open_tokenizer(tokenizer).identity
    save(tmp_path / "file", make_state(SMALL), tokenizer=of_file)
    save(tmp_path / "byte", make_state(SMALL), tokenizer="byte")
    shape = _changed(SMALL, vocabulary_size=vocabulary_size)
    own = {"data__tokenizer": tokenizer.model_dump()}

    assert open_transfer(_run("Checkpoint", tmp_path / "file", shape, **own)) is not None
    assert open_transfer(_run("Checkpoint", tmp_path / "byte", shape)) is not None
    with pytest.raises(ConfigurationError) as caught:
        open_transfer(_run("Checkpoint", tmp_path / "file", shape))
    assert caught.value.reason == "OtherTokenizer"
    assert str(tmp_path / "file/step-00000001") in caught.value.message
    assert f"`b2sum -l 128` is {of_file}, and this run has the tok" in caught.value.message
    with pytest.raises(ConfigurationError, match="with the tokenizer Byte, and this run has the t"):
        open_transfer(_run("Checkpoint", tmp_path / "byte", shape, **own))


def test_a_checkpoint_of_no_known_tokenizer_is_taken(
    tokenizer: TokenizerFile, tmp_path: Path
) -> None:
    save(tmp_path / "run", make_state(SMALL), tokenizer=None)
    run = _run("Checkpoint", tmp_path / "run", data__tokenizer=tokenizer.model_dump())

    assert open_transfer(run) is not None


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_adapters_begin_as_draws_beside_the_weights_and_add_nothing(
    mesh: Mesh, trained: Path
) -> None:
    adapted = _changed(SMALL, lora=LORA)
    draws = {
        name: initial_values(name, piece, seed=SEED, layers=SMALL.layers)
        for name, piece in layout(adapted, Mesh(), 0).items()
        if is_adapter(name)
    }
    ends = {name: bool(tensor.any()) for name, tensor in draws.items()}

    assert ends == {name: name.endswith("lora_A") for name in draws}
    _check_parts(_run("Checkpoint", trained, adapted), mesh, _weights(trained, SMALL) | draws)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_adapters_of_the_other_run_are_merged(mesh: Mesh, tmp_path: Path) -> None:
    adapted = _changed(SMALL, lora=LORA)
    save(tmp_path, make_state(adapted), shape=adapted)
    stored = _weights(tmp_path, adapted)
    expected = {name: stored[name] for name in weights(SMALL)}
    for end in ("self_attn.v_proj", "mlp.down_proj"):
        for layer in range(SMALL.layers):
            name = f"layers.{layer}.{end}"
            product = stored[f"{name}.lora_B"] @ stored[f"{name}.lora_A"]
            expected[f"{name}.weight"] = stored[f"{name}.weight"] + 3.0 * product

    for rank in range(mesh.size):
        for name, shard in _filled(_run("Checkpoint", tmp_path), mesh, rank).items():
            region = shard.piece.region
            whole = Region((0,) * len(region.size), shard.piece.shape)
            assert torch.allclose(expected[name][region.within(whole)], shard.tensor, atol=1e-6)
