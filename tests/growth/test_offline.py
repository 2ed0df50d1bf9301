"""`modelscaling grow`: a checkpoint becomes that of a larger model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.cli.main import main
from modelscaling.growth.lineage import Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import UnreachableShapeError
from modelscaling.layout import Piece, Region
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.growth import checkpoint
from modelscaling_trainer.growth.offline import grow
from modelscaling_trainer.row_blocks import row_blocks
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import Counters
from tests.growth.growing import grown, make_shape, make_state, plan
from tests.growth.offline_work import make_work
from tests.trainer.checkpoints import save

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling_trainer.checkpoint.catalog import Checkpoint

SHAPE = make_shape(vocabulary_size=256)
COUNTERS = Counters(step=20, tokens=900, sample_digest="d", useful_seconds=3.0, started_at=1.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run, with checkpoints of two processes."""
    directory = tmp_path / "run"
    for step in (10, 20):
        counters = Counters(**asdict(COUNTERS) | {"step": step})
        save(directory, make_state(SHAPE), mesh=Mesh(dataShard=2), counters=counters, shape=SHAPE)
    return directory


def load(checkpoint: Checkpoint) -> dict[str, Tensor]:
    state = {name: torch.empty(stored.shape) for name, stored in checkpoint.tensors.items()}
    checkpoint.load(
        {
            name: Shard(
                tensor,
                Piece(
                    shape=tuple(tensor.shape),
                    region=Region((0,) * tensor.ndim, tuple(tensor.shape)),
                    copy=0,
                    copies=1,
                ),
            )
            for name, tensor in state.items()
        }
    )
    return state


@pytest.mark.parametrize("most_elements", [100, 1 << 24], ids=["some rows a time", "whole tensors"])
def test_weights_and_moments_grow_and_the_lineage_is_kept(
    run: Path, tmp_path: Path, most_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = partial(row_blocks, most_elements=most_elements)
    monkeypatch.setattr(checkpoint, "row_blocks", cut)
    done = grow(make_work(run, tmp_path / "larger"))
    written = catalog.find_newest(tmp_path / "larger")

    assert written is not None
    assert done.path == written.path == tmp_path / "larger/step-00000020"
    assert written.counters == COUNTERS
    assert written.lineage == Lineage().grown(SHAPE, step=20, mode=GrowthMode.PRESERVE)
    expected = plan(SHAPE, layers=3, hidden_size=31, heads=6, kv_heads=3, feed_forward_size=50)
    assert written.model == asdict(expected.shape)
    state, whole = load(written), grown(make_state(SHAPE), expected)
    assert state.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, state[name]), name


def test_what_has_grown_grows_again(run: Path, tmp_path: Path) -> None:
    grow(make_work(run, tmp_path / "b"))
    done = grow(make_work(tmp_path / "b", tmp_path / "c", shape={"layers": 7}))
    written = catalog.read(done.path)

    assert written is not None
    assert [one.shape.layers for one in written.lineage.ancestors] == [2, 3]
    assert written.lineage.heritage(done.plan.shape)


@pytest.mark.parametrize("tokenizer", ["1f", None], ids=["known", "not known"])
def test_the_tokenizer_stays_that_of_the_original(tokenizer: str | None, tmp_path: Path) -> None:
    save(tmp_path / "run", make_state(SHAPE), shape=SHAPE, tokenizer=tokenizer)
    written = catalog.read(grow(make_work(tmp_path / "run", tmp_path / "larger")).path)

    assert written is not None
    assert written.tokenizer == tokenizer


def test_a_checkpoint_by_itself_becomes_one(run: Path, tmp_path: Path) -> None:
    done = grow(make_work(run / "step-00000010", tmp_path / "one"))

    assert done.path == tmp_path / "one"
    assert catalog.read(tmp_path / "one") is not None


def test_a_text_tells_how_far_the_models_are_apart(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Mary had a little lamb. " * 20)
    kept = grow(make_work(run, tmp_path / "b", check=text)).comparison
    stacked = grow(
        make_work(run, tmp_path / "c", check=text, mode=GrowthMode.STACK, shape={"layers": 4})
    ).comparison

    assert kept
    assert stacked
    assert kept.tokens == stacked.tokens == 28 * 16
    assert 0 <= kept.largest_difference <= 2e-5 * kept.largest_logit
    assert kept.loss_after == pytest.approx(kept.loss_before, rel=1e-5)
    assert stacked.largest_difference > 1e-2 * stacked.largest_logit


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": {"layers": 1}}, UnreachableShapeError, "layers: 1 is less than the 2"),
        ({"shape": {"layers": 2}}, ConfigurationError, "the model has this shape already"),
        ({"shape": {"heads": 7}}, ValueError, "heads=7 is not divisible by kvHeads=2"),
        ({"shape": {"layers": "many"}}, ValueError, "spec.model.layers: 'many'"),
    ],
)
def test_a_shape_that_cannot_be_leaves_nothing_behind(
    run: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grow(make_work(run, tmp_path / "larger", **changes))

    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_text_with_tokens_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    shape = make_shape(vocabulary_size=100)
    save(tmp_path / "run", make_state(shape), shape=shape)
    text = tmp_path / "text.txt"
    text.write_text("what")

    with pytest.raises(ConfigurationError, match="has the token 119, and the model knows 100"):
        grow(make_work(tmp_path / "run", tmp_path / "larger", check=text))


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no checkpoint, has no whole one below it"):
        grow(make_work(tmp_path, tmp_path / "larger"))


def test_damage_that_is_found_on_the_way_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    file = run / "step-00000020/part-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[8] = ord("x")  # the header's first sign
    file.write_bytes(content)

    with pytest.raises(CheckpointError, match="is damaged"):
        grow(make_work(run, tmp_path / "larger"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN", "OUT", "--shape", "layers"], "--shape: 'layers' is not NAME=VALUE"),
        (["IN", "OUT", "--shape", "width=3"], "--shape: 'width=3' is not NAME=VALUE"),
        (["nowhere", "OUT", "--shape", "layers=3"], "IN: 'nowhere' is not a directory"),
        (["IN", "IN", "--shape", "layers=3"], "exists; give a new name, or remove it"),
        (["IN", "OUT", "--shape", "layers=3", "--check", "no.txt"], "--check: 'no.txt' is not"),
        (["IN", "OUT", "--shape", "layers=3", "--noise", "-1"], "--noise: -1.0 is not a number"),
        (["IN", "OUT", "--shape", "layers=3", "--noise", "nan"], "--noise: nan is not a number"),
    ],
    ids=["no value", "unknown field", "no directory", "OUT exists", "no text", "negative", "nan"],
)
def test_wrong_arguments_are_refused_by_name(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"IN": str(tmp_path), "OUT": str(tmp_path / "out")}

    assert main(["grow", *(names.get(word, word) for word in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("is_json", [True, False], ids=["json", "text"])
def test_the_command_grows_and_says_what_is_exact(
    run: Path, tmp_path: Path, *, is_json: bool
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Mary had a little lamb. " * 20)
    done = _command(
        *("grow", str(run), str(tmp_path / "b"), "--shape", "layers=3", "--check", str(text)),
        *(["--json"] if is_json else []),
    )

    assert (done.returncode, done.stderr) == (0, "")
    if is_json:
        content = json.loads(done.stdout)
        assert content["exactness"] == "Bitwise"
        assert content["shape"]["layers"] == 3
        assert content["check"]["tokens"] == 448
        assert catalog.is_checkpoint(tmp_path / "b/step-00000020")
        assert content["output"] == str(tmp_path / "b/step-00000020")
    else:
        assert "Bitwise   layers 2 to 3: " in done.stdout
        assert "largest logit difference 0 of logits up to" in done.stdout


@pytest.mark.process
def test_the_command_refuses_a_shape_in_the_trainers_words(run: Path, tmp_path: Path) -> None:
    done = _command("grow", str(run), str(tmp_path / "b"), "--shape", "headSize=16")

    assert done.returncode == 2
    assert done.stderr.startswith("error: --shape: headSize: 16 is not the 8 of the trained model")


@pytest.mark.process
def test_memory_is_for_the_largest_tensor_and_not_for_the_model(tmp_path: Path) -> None:
    shape = make_shape(
        layers=24, hidden_size=192, heads=6, kv_heads=6, head_size=32, feed_forward_size=768
    )
    save(tmp_path / "run", make_state(shape), shape=shape)
    script = (
        "import resource, sys\n"
        "from modelscaling.local_growth import LocalGrowth\n"
        "from modelscaling_trainer.growth.offline import grow\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "done = grow(LocalGrowth.model_validate_json(sys.argv[1]))\n"
        "print((peak() - before) * 1024, done.plan.shape.parameters() * 12)\n"
    )
    work = make_work(
        tmp_path / "run", tmp_path / "b", shape={"layers": 30, "feedForwardSize": 1024}
    )
    done = subprocess.run(
        [sys.executable, "-c", script, work.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    taken, whole = map(int, done.stdout.split())

    assert whole > 250e6
    assert taken < 30e6


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelscaling.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
