"""Text to token ids: bytes as they are, or a Hugging Face tokenizer.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from modelscaling.api.data import BuiltInTokenizer, TokenizerFile
from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tokenizer(Protocol):
    """Anything that turns the bytes of a text into token ids."""

    @property
    def identity(self) -> str:
        """What tells this tokenizer from all others: in the name of a cache, and in checkpoints of
        models that are trained with it.
        """
        ...

    def encode(self, text: bytes) -> NDArray[np.uint32]:
        """Return the token ids of a piece of text."""
        ...


class ByteTokenizer:
    """One token a byte."""

    identity = "byte"

    def encode(self, text: bytes) -> NDArray[np.uint32]:
        """Return the bytes; nothing is decoded, so text that is not UTF-8 stays as it is."""
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint32)


class FileTokenizer:
    """A tokenizer.json, without the special tokens that its template would add: pieces of text
    are joined into one stream.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigurationError: it cannot be read, or is not a tokenizer.
        """
        # Imported here: runs on bytes need not wait for it.
        import tokenizers  # noqa: PLC0415

        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises bare Exception
            raise ConfigurationError(
                "InvalidTokenizer",
                f"data.tokenizer.file={str(path)!r} is not a readable tokenizer.json: {error}; "
                f"give the path, inside the pod, of a Hugging Face tokenizer.json",
            ) from error
        self.identity = hashlib.blake2b(content, digest_size=16).hexdigest()

    def encode(self, text: bytes) -> NDArray[np.uint32]:
        """Return the ids of UTF-8 text; bytes that are not UTF-8 become the replacement sign."""
        encoding = self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.uint32)


def open_tokenizer(setting: BuiltInTokenizer | TokenizerFile) -> Tokenizer:
    """Return the tokenizer that a run declares.

    Raises:
        ConfigurationError: its file cannot be read, or is not a tokenizer.
    """
    if isinstance(setting, TokenizerFile):
        return FileTokenizer(Path(setting.file))
    return ByteTokenizer()
