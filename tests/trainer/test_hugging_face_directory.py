from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import CharDelimiterSplit
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelscaling.layout import Region, layout, weights
from modelscaling.mesh import Mesh
from modelscaling_trainer.data.tokenizer import ByteTokenizer, FileTokenizer
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.hugging_face.directory import HuggingFaceDirectory
from modelscaling_trainer.hugging_face.writing import write_directory
from modelscaling_trainer.model.decoder import Decoder
from tests.trainer.decoders import make_shape
from tests.trainer.families import FAMILIES, draw, make_transformers_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling.shape import ModelShape

TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


class Weights:
    """A source of all different weights."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.tensors = {name: torch.randn(size) * 0.1 for name, size in weights(shape).items()}

    def read(self, name: str, region: Region) -> Tensor:
        whole = self.tensors[name]
        return whole[region.within(Region((0,) * whole.ndim, tuple(whole.shape)))]


def _whole(size: tuple[int, ...]) -> Region:
    return Region((0,) * len(size), size)


def _decoder(source: Weights | HuggingFaceDirectory) -> Decoder:
    decoder = Decoder(source.shape, compute_dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in decoder.weights().items():
            parameter.copy_(source.read(name, _whole(tuple(parameter.shape))))
    return decoder


def _ids(shape: ModelShape) -> Tensor:
    return torch.randint(shape.vocabulary_size, (3, shape.context_length))


def _save(path: Path, *, shard: str = "1GB", dtype: torch.dtype = torch.float32) -> Any:
    """Have transformers save a small Llama; return it."""
    model = make_transformers_model(make_shape())
    draw(model)
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    return model


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_directory_of_transformers_computes_its_logits(
    family: str,
    is_tied: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    shape = make_shape(**FAMILIES[family], tied_embeddings=is_tied)
    model = make_transformers_model(shape)
    draw(model)
    model.save_pretrained(tmp_path)
    ids = _ids(shape)

    directory = HuggingFaceDirectory(tmp_path)

    assert directory.shape == shape
    logits = _decoder(directory)(ids)
    assert torch.allclose(model(ids).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("largest_file_bytes", [4 << 30, 20_000], ids=["one file", "many files"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_transformers_computes_the_logits_of_what_is_written(
    family: str, largest_file_bytes: int, tmp_path: Path
) -> None:
    source = Weights(make_shape(**FAMILIES[family]))
    out = tmp_path / "a" / "out"
    write_directory(source, out, companions={}, largest_file_bytes=largest_file_bytes)
    ids = _ids(source.shape)

    model: Any = AutoModelForCausalLM.from_pretrained(out)

    logits = _decoder(source)(ids)
    assert torch.allclose(logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert (len([*out.glob("*.safetensors")]) > 1) is (largest_file_bytes == 20_000)
    generated = model.generate(ids[:1, :4], max_new_tokens=1, do_sample=False)
    assert generated[0, -1] == logits[0, 3].argmax()


def test_what_is_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    source = Weights(make_shape(**FAMILIES["qwen2.5"], tied_embeddings=True))
    write_directory(source, tmp_path / "out", companions={}, largest_file_bytes=20_000)

    directory = HuggingFaceDirectory(tmp_path / "out")

    assert directory.shape == source.shape
    for name, tensor in source.tensors.items():
        assert torch.equal(tensor, directory.read(name, _whole(tuple(tensor.shape))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[HuggingFaceDirectory, Weights]:
    path = tmp_path_factory.mktemp("saved") / "out"
    source = Weights(make_shape(**FAMILIES["olmo-2"]))
    write_directory(source, path, companions={}, largest_file_bytes=20_000)
    return HuggingFaceDirectory(path), source


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mesh=st.sampled_from(
        [Mesh(tensor=2), Mesh(dataShard=3), Mesh(dataShard=32), Mesh(pipeline=2, tensor=2)]
    ),
    data=st.data(),
)
def test_each_process_of_a_mesh_reads_its_own_part(
    mesh: Mesh, data: st.DataObject, saved: tuple[HuggingFaceDirectory, Weights]
) -> None:
    directory, source = saved
    rank = data.draw(st.integers(0, mesh.size - 1))

    for name, piece in layout(source.shape, mesh, rank).items():
        assert torch.equal(source.read(name, piece.region), directory.read(name, piece.region))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = _save(tmp_path, dtype=dtype)

    read = HuggingFaceDirectory(tmp_path).read("norm.weight", Region((3,), (5,)))

    assert read.dtype is torch.float32
    assert torch.equal(model.model.norm.weight[3:8].float(), read)


def _change(file: Path, change: dict[str, Tensor | None]) -> None:
    tensors: dict[str, Tensor | None] = {**load_file(file), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.norm.weight": None, "model.layers.1.mlp.up_proj.weight": None},
            r"it lacks model.layers.1.mlp.up_proj.weight, model.norm.weight;",
        ),
        (
            {f"model.layers.{i}.adapter": torch.zeros(1) for i in range(7)},
            r"it has also model.layers.0.adapter, .*4.adapter and 2 more;",
        ),
        (
            {"lm_head.weight": torch.zeros(60, 32)},
            r"it has lm_head.weight as \(60, 32\), expected \(61, 32\)",
        ),
        (
            {"model.norm.weight": torch.zeros(32, dtype=torch.int8)},
            "it has model.norm.weight as I8, expected one of F64, F32, F16, BF16",
        ),
    ],
    ids=["missing", "extra", "another vocabulary", "integers"],
)
def test_tensors_that_are_not_the_models_are_named(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    _save(tmp_path)
    _change(tmp_path / "model.safetensors", change)

    with pytest.raises(ConfigurationError, match=message) as caught:
        HuggingFaceDirectory(tmp_path)

    assert caught.value.reason == "OtherWeights"


def test_what_old_versions_saved_beside_the_weights_is_no_matter(tmp_path: Path) -> None:
    _save(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _change(tmp_path / "model.safetensors", {name: torch.zeros(4)})

    HuggingFaceDirectory(tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "config.json' cannot be read: .*save_pretrained"),
        ("model.safetensors.index.json", "has neither model.safetensors nor model.safetensors.ind"),
        ("model-00002-of-*.safetensors", "model-00002-of-.*.safetensors' cannot be read"),
    ],
)
def test_a_file_that_is_not_there_is_named(removed: str, message: str, tmp_path: Path) -> None:
    write_directory(
        Weights(make_shape()), tmp_path / "out", companions={}, largest_file_bytes=20_000
    )
    (file,) = (tmp_path / "out").glob(removed)
    file.unlink()

    with pytest.raises(ConfigurationError, match=message):
        HuggingFaceDirectory(tmp_path / "out")


def test_a_file_that_is_damaged_after_it_was_checked_is_named(tmp_path: Path) -> None:
    _save(tmp_path)
    directory = HuggingFaceDirectory(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")

    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged"):
        directory.read("norm.weight", Region((0,), (32,)))


def test_a_directory_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists; remove it"):
        write_directory(Weights(make_shape()), tmp_path, companions={})

    assert not [*tmp_path.iterdir()]


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Weights):
        def read(self, name: str, region: Region) -> Tensor:
            if name == "norm.weight":
                raise CheckpointError("it is damaged")
            return super().read(name, region)

    with pytest.raises(CheckpointError):
        write_directory(Broken(make_shape()), tmp_path / "out", companions={})

    assert not [*tmp_path.iterdir()]


def test_another_tokenizer_than_the_models_is_refused(tmp_path: Path) -> None:
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    own.write_text(json.dumps(TOKENIZER))
    other.write_text(json.dumps(TOKENIZER, indent=1))
    write_directory(Weights(make_shape()), tmp_path / "out", companions={"tokenizer.json": own})
    directory = HuggingFaceDirectory(tmp_path / "out")

    directory.check_tokenizer(FileTokenizer(own))
    for tokenizer in (FileTokenizer(other), ByteTokenizer()):
        with pytest.raises(ConfigurationError, match=r"set data\.tokenizer\.file to '.*tokeniz"):
            directory.check_tokenizer(tokenizer)


@pytest.mark.parametrize("family", ["llama", "mistral", "olmo-2"])
def test_transformers_gives_text_the_ids_that_the_tokenizers_file_gives_it(
    family: str, tmp_path: Path
) -> None:
    # It splits where no family's own tokenizer does.
    own = Tokenizer(BPE({"a": 0, "b": 1, "-": 2}, []))
    own.pre_tokenizer = CharDelimiterSplit("-")
    own.save(str(tmp_path / "own.json"))
    source = Weights(make_shape(**FAMILIES[family]))
    write_directory(source, tmp_path / "out", companions={"tokenizer.json": tmp_path / "own.json"})

    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")

    assert loaded("a-b-a").input_ids == own.encode("a-b-a").ids == [0, 1, 0]


def test_a_model_without_a_tokenizer_goes_with_any(tmp_path: Path) -> None:
    write_directory(Weights(make_shape()), tmp_path / "out", companions={})
    directory = HuggingFaceDirectory(tmp_path / "out")

    assert directory.tokenizer is None
    directory.check_tokenizer(ByteTokenizer())
