"""A directory with a model as Hugging Face publishes them: config.json, weights in one safetensors
file or in several with an index, and mostly a tokenizer.json.

Only the files' headers are read at first: they must hold exactly the weights of the model that
config.json describes. Then any block of any weight can be read by itself, so that each process of
a mesh reads no more than its part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from modelscaling.layout import weights
from modelscaling_trainer.data.tokenizer import FileTokenizer
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.hugging_face.configuration import shape_from
from modelscaling_trainer.hugging_face.names import their_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelscaling.layout import Region
    from modelscaling.shape import ModelShape
    from modelscaling_trainer.data.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"

_DTYPES = {
    "F64": torch.float32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What weights may be stored as, and what holds them as they are read, as float32."""
_TOKENIZER_FILES = (
    TOKENIZER,
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_GENERATION = "generation_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MOST_NAMES = 5
"""How many tensors a message names."""


class HuggingFaceDirectory:
    """A model in a directory, as a WeightSource."""

    def __init__(self, path: Path) -> None:
        """Read what the directory holds, and no weights.

        Raises:
            ConfigurationError: it cannot be read, is of a model that the decoder does not compute,
                or does not hold exactly that model's weights.
        """
        self._path = path
        self._config = _read_json(path / CONFIG)
        self.shape: ModelShape = shape_from(self._config, path=str(path / CONFIG))
        stored = _stored(path)
        self._files = self._check(stored)
        dtypes = {_DTYPES[stored[their_name(name)][1]] for name in self._files}
        self.dtype: torch.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        """The narrowest that holds every weight as it is read."""

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file; None where there is none."""
        file = self._path / TOKENIZER
        return file if file.is_file() else None

    @property
    def companions(self) -> dict[str, Path]:
        """The files that say how the model is used, by name: of a larger one they are the same."""
        files = {name: self._path / name for name in (*_TOKENIZER_FILES, _GENERATION)}
        return {name: file for name, file in files.items() if file.is_file()}

    @property
    def token_ids(self) -> dict[str, Any]:
        """What the configuration says of the tokens that begin, end and fill up a text."""
        return {name: self._config[name] for name in _TOKEN_IDS if name in self._config}

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a run whose token ids mean something else than the model's.

        Raises:
            ConfigurationError: the run has another tokenizer than the directory.
        """
        file = self.tokenizer
        if file is not None and FileTokenizer(file).identity != tokenizer.identity:
            raise ConfigurationError(
                "OtherTokenizer",
                f"{str(self._path)!r} was trained with its own {TOKENIZER}, and this run has "
                f"another tokenizer; set data.tokenizer.file to {str(file)!r}",
            )

    def read(self, name: str, region: Region) -> Tensor:
        """Return a block of a weight, float32 on the CPU.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not region.elements:
            return torch.empty(region.size)
        file = self._files[name]
        try:
            with safe_open(file, "pt") as part:
                stored = part.get_slice(their_name(name))
                block: Tensor = stored[
                    tuple(
                        slice(start, start + length)
                        for start, length in zip(region.offset, region.size, strict=True)
                    )
                ]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{str(file)!r} is damaged: {error}") from error
        return block.to(torch.float32)

    def _check(self, stored: Mapping[str, tuple[Path, str, tuple[int, ...]]]) -> dict[str, Path]:
        """Return the file of each weight; refuse any that is missing, too many or of another
        shape.
        """
        expected = {their_name(name): (name, size) for name, size in weights(self.shape).items()}
        missing = sorted(expected.keys() - stored.keys())
        extra = sorted(name for name in stored.keys() - expected.keys() if not self._is_known(name))
        problems = [
            f"{what} {_named(names)}"
            for what, names in (("lacks", missing), ("has also", extra))
            if names
        ]
        for name in expected.keys() & stored.keys():
            _, dtype, shape = stored[name]
            if shape != expected[name][1]:
                problems.append(f"has {name} as {shape}, expected {expected[name][1]}")
            elif dtype not in _DTYPES:
                problems.append(f"has {name} as {dtype}, expected one of {', '.join(_DTYPES)}")
        if problems:
            raise ConfigurationError(
                "OtherWeights",
                f"{str(self._path)!r} does not hold the model that its {CONFIG} describes: it "
                f"{'; it '.join(sorted(problems)[:_MOST_NAMES])}; give the directory that the "
                f"model was saved to",
            )
        return {ours: stored[name][0] for name, (ours, _) in expected.items()}

    def _is_known(self, name: str) -> bool:
        """Whether an additional tensor says nothing new, as old versions of transformers saved."""
        is_tied_head = self.shape.tied_embeddings and name == "lm_head.weight"
        return is_tied_head or name.endswith(".rotary_emb.inv_freq")


def _stored(path: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """Return file, dtype and shape of each tensor in a directory."""
    if (path / INDEX).is_file():
        index = _read_json(path / INDEX)
        files = sorted({path / Path(name).name for name in _weight_map(index, path).values()})
    elif (path / WEIGHTS).is_file():
        files = [path / WEIGHTS]
    else:
        raise ConfigurationError(
            "NoWeights",
            f"{str(path)!r} has neither {WEIGHTS} nor {INDEX}; save the model with "
            f"save_pretrained(…, safe_serialization=True)",
        )
    return {name: found for file in files for name, found in _header(file).items()}


def _weight_map(index: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise ConfigurationError(
            "NoWeights", f"{str(path / INDEX)!r} has no weight_map; download it again"
        )
    return names


def _header(file: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    try:
        with safe_open(file, "pt") as part:
            slices = {name: part.get_slice(name) for name in part.keys()}  # noqa: SIM118 - no mapping
            return {
                name: (file, found.get_dtype(), tuple(found.get_shape()))
                for name, found in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            "NoWeights", f"{str(file)!r} cannot be read: {error}; download it again"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "NoModel",
            f"{str(file)!r} cannot be read: {error}; give a directory with a model as Hugging "
            f"Face's save_pretrained() writes it",
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError("NoModel", f"{str(file)!r} is not an object of JSON")
    return content


def _named(names: list[str]) -> str:
    """Return the first of some names, and how many there are more."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
