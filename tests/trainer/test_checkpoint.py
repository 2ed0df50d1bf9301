from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modelscaling.growth.trained_model import TrainedModel
from modelscaling.layout import Piece, Region
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.catalog import (
    Checkpoint,
    find,
    find_newest,
    prune,
)
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import Counters
from tests.examples import examples
from tests.trainer.checkpoints import (
    MESHES,
    SHAPE,
    SINGLE,
    differing,
    forget,
    make_shape,
    make_shards,
    make_state,
    save,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from modelscaling.shape import ModelShape

STATE = make_state()


def save_step(directory: Path, step: int) -> Path:
    save(directory, STATE, counters=Counters(step=step))
    return directory / f"step-{step:08d}"


def found_in(directory: Path) -> Checkpoint:
    found = find_newest(directory)
    assert found is not None
    return found


def newest_step(directory: Path) -> int:
    return catalog.step_of(find_newest(directory))


def names_in(directory: Path) -> list[str]:
    """Return what there is beside the group's claim."""
    names = sorted(path.name for path in directory.iterdir())
    return [name for name in names if not name.startswith(".generation-")]


def lost_on(
    found: Checkpoint, state: dict[str, Tensor], mesh: Mesh, *, shape: ModelShape = SHAPE
) -> list[str]:
    """Load on every process of a mesh; return what came back otherwise than it was."""
    lost = []
    for rank in range(mesh.size):
        shards = make_shards(state, mesh, rank, shape=shape)
        forget(shards)
        found.load(shards)
        lost += [f"{name} on rank {rank} of {mesh}" for name in differing(shards, state)]
    return lost


@pytest.mark.parametrize("written_on", MESHES, ids=str)
def test_what_any_mesh_writes_every_other_reads_bitwise(tmp_path: Path, written_on: Mesh) -> None:
    save(tmp_path, STATE, mesh=written_on)
    found = found_in(tmp_path)

    assert [lost for mesh in MESHES for lost in lost_on(found, STATE, mesh)] == []


_AXES = {"pipeline": (1, 3), "dataReplicate": (1, 2), "dataShard": (1, 3), "tensor": (1, 3)}
_meshes = st.builds(Mesh, **{axis: st.integers(*limits) for axis, limits in _AXES.items()}).filter(
    lambda mesh: mesh.size <= 8
)
_shapes = st.builds(
    make_shape,
    layers=st.integers(1, 4),
    hidden_size=st.integers(1, 11),
    vocabulary_size=st.integers(1, 11),
    is_tied=st.booleans(),
)


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=_shapes, written_on=_meshes, read_on=_meshes)
def test_any_shape_goes_from_any_mesh_to_any_other(
    shape: ModelShape, written_on: Mesh, read_on: Mesh
) -> None:
    state = make_state(shape)
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory), state, mesh=written_on, shape=shape)
        found = found_in(Path(directory))

        assert lost_on(found, state, read_on, shape=shape) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_other_dtypes_come_back_bitwise(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: (tensor * 100).to(dtype) for name, tensor in STATE.items()}
    save(tmp_path, state, mesh=Mesh(tensor=2))

    assert lost_on(found_in(tmp_path), state, Mesh(dataShard=3)) == []


def test_counters_and_shape_come_back(tmp_path: Path) -> None:
    counters = Counters(step=3, tokens=96, sample_digest="ab", useful_seconds=1.5, started_at=7.0)
    save(tmp_path, STATE, counters=counters)
    found = found_in(tmp_path)

    assert counters == found.counters
    assert found.trained == TrainedModel(shape=SHAPE)


def test_the_library_alone_reads_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, STATE, mesh=Mesh(dataShard=2))
    parts = [load_file(path) for path in sorted(tmp_path.glob("step-*/part-*.safetensors"))]
    joined = {name: torch.cat([part[name] for part in parts if name in part]) for name in STATE}

    assert all(torch.equal(joined[name], tensor) for name, tensor in STATE.items())


def test_the_format_knows_no_mesh(tmp_path: Path) -> None:
    save(tmp_path, STATE, mesh=Mesh(tensor=2))
    path = tmp_path / "step-00000001"
    description = json.loads((path / "checkpoint.json").read_text())

    assert names_in(path) == [
        "checkpoint.json",
        "part-00000.safetensors",
        "part-00001.safetensors",
    ]
    assert set(description) == {
        "format",
        "counters",
        "model",
        "lineage",
        "tokenizer",
        "files",
        "tensors",
    }
    assert description["format"] == catalog.FORMAT
    assert description["tensors"]["exp_avg.layers.0.mlp.down_proj.weight"] == {
        "dtype": "F32",
        "shape": [20, 44],
        "blocks": [
            {"file": "part-00000.safetensors", "offset": [0, 0], "size": [20, 22]},
            {"file": "part-00001.safetensors", "offset": [0, 22], "size": [20, 22]},
        ],
    }


def test_only_files_that_have_something_of_a_shard_are_opened(tmp_path: Path) -> None:
    save(tmp_path, STATE, mesh=Mesh(pipeline=2))
    found = found_in(tmp_path)
    (found.path / "part-00001.safetensors").unlink()
    shards = make_shards(STATE, Mesh(pipeline=4), 1)
    forget(shards)
    found.load(shards)

    assert differing(shards, STATE) == []


def _truncate(path: Path) -> None:
    file = path / "part-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _delete(path: Path) -> None:
    (path / "part-00000.safetensors").unlink()


def _describe_as(content: str) -> Callable[[Path], None]:
    def describe(path: Path) -> None:
        (path / "checkpoint.json").write_text(content)

    return describe


def _cut_description(path: Path) -> None:
    description = path / "checkpoint.json"
    description.write_text(description.read_text()[:-40])


def _delete_description(path: Path) -> None:
    (path / "checkpoint.json").unlink()


@pytest.mark.parametrize(
    "tear",
    [
        _truncate,
        _delete,
        _cut_description,
        _describe_as('{"format": 2}'),
        _describe_as('{"format": "2"}'),
        _describe_as("[]"),
        _describe_as('{"format": 2, "files": [], "counters": {}, "model": {}, "tensors": {}}'),
        _delete_description,
    ],
    ids=[
        "a part cut short",
        "a part lost",
        "description cut short",
        "description without fields",
        "description of a wrong type",
        "description without names",
        "description with a list of files",
        "description lost",
    ],
)
def test_a_torn_checkpoint_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tear: Any
) -> None:
    save_step(tmp_path, 100)
    torn = save_step(tmp_path, 200)
    tear(torn)
    with caplog.at_level(logging.WARNING):
        found = newest_step(tmp_path)

    assert found == 100
    assert str(torn) in caplog.text


def test_an_excepted_step_is_passed_over(tmp_path: Path) -> None:
    for step in (100, 200):
        save_step(tmp_path, step)
    found = find_newest(tmp_path, except_steps={200})

    assert found is not None
    assert found.counters.step == 100


def test_a_step_is_found_by_its_number(tmp_path: Path) -> None:
    for step in (100, 200):
        save_step(tmp_path, step)
    found = find(tmp_path, 100)

    assert found is not None
    assert found.counters.step == 100
    assert find(tmp_path, 300) is None


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "step-12").mkdir()
    (tmp_path / ".writing-step-00000300-a").mkdir()

    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "missing") is None


def _zero_header(path: Path) -> None:
    with (path / "part-00000.safetensors").open("r+b") as file:
        file.write(b"\0" * 512)


def _swap_part(path: Path) -> None:
    """Put in a whole part of the same size that holds something else."""
    part = path / "part-00000.safetensors"
    content = part.read_bytes()
    part.write_bytes(content.replace(b'"shape": [37, 20]', b'"shape": [20, 37]'))


def _edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        description = json.loads((path / "checkpoint.json").read_text())
        change(description["tensors"])
        (path / "checkpoint.json").write_text(json.dumps(description))

    return edit


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_zero_header, "damaged: Error while deserializing"),
        (_swap_part, "damaged: part-00000.safetensors holds model.embed_tokens.weight as"),
        (_edit_index(lambda tensors: tensors.pop(NORM)), f"damaged: it lacks the tensor {NORM}"),
        (
            _edit_index(lambda tensors: tensors[NORM]["blocks"].clear()),
            f"damaged: it holds 0 of the 20 elements of {NORM}",
        ),
        (
            _edit_index(lambda tensors: tensors[NORM].update(dtype="F64")),
            rf"damaged: {NORM} is F64 \(20,\), expected \('F32', \(20,\)\)",
        ),
        (
            _edit_index(lambda tensors: tensors[NORM].update(shape=[21])),
            rf"damaged: {NORM} is F32 \(21,\), expected",
        ),
        (
            _edit_index(lambda tensors: tensors[NORM]["blocks"][0].update(file="gone")),
            "damaged: .*gone",
        ),
    ],
    ids=[
        "header zeroed",
        "another part",
        "tensor lost",
        "block lost",
        "another dtype",
        "another size",
        "no such file",
    ],
)
def test_damage_inside_a_checkpoint_is_a_checkpoint_error(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(save_step(tmp_path, 100))
    found = found_in(tmp_path)

    with pytest.raises(CheckpointError, match=message):
        found.load(make_shards(STATE, SINGLE, 0))


def test_a_shard_that_is_covered_in_part_only_is_refused(tmp_path: Path) -> None:
    path = save_step(tmp_path, 100)
    _edit_index(lambda tensors: tensors[NORM]["blocks"][0].update(offset=[5], size=[15]))(path)
    piece = Piece(shape=(20,), region=Region((0,), (10,)), copy=0, copies=1)

    with pytest.raises(CheckpointError, match=r"holds 5 of the 10 elements of model.norm.weight"):
        found_in(tmp_path).load({NORM: Shard(torch.zeros(10), piece)})


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    save(tmp_path, STATE, tokenizer="1f")

    assert found_in(tmp_path).tokenizer == "1f"


def test_what_another_version_of_the_same_format_lacks_or_adds_is_no_damage(tmp_path: Path) -> None:
    file = save_step(tmp_path, 1) / "checkpoint.json"
    description = json.loads(file.read_text())
    del description["tokenizer"]
    file.write_text(json.dumps(description | {"weather": "fine"}))

    assert found_in(tmp_path).tokenizer is None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    description = save_step(tmp_path, 1) / "checkpoint.json"
    description.write_text(json.dumps({"format": 4, "everything": "else"}))

    with pytest.raises(ConfigurationError, match="has format 4, and this version reads up to 3"):
        find_newest(tmp_path)


def test_pruning_keeps_the_newest_valid_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_step(tmp_path, step)
    _truncate(tmp_path / "step-00000004")
    prune(tmp_path, keep=2)

    assert newest_step(tmp_path) == 3
    assert names_in(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]


def test_pruning_removes_what_a_dead_writer_left_but_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    dead, live = tmp_path / ".writing-dead", tmp_path / ".writing-live"
    dead.mkdir()
    live.mkdir()
    os.utime(dead, (0, 0))
    prune(tmp_path, keep=1)

    assert names_in(tmp_path) == [".writing-live"]
