"""The files of a corpus, read piece by piece as token ids.

Every file of text, and every line of a .jsonl file, is a document. A document ends with a newline
(one is added where it has none), and documents are joined without anything else between them.
Text is read in pieces that end with a line, so memory does not grow with the size of a file; a
tokenizer sees one piece at a time.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from modelscaling_trainer.data.tokenizer import Tokenizer

PIECE_BYTES = 1 << 20
BINARY = ".bin"
"""The suffix of files with token ids, which no tokenizer reads."""
_UINT16_IDS = 1 << 16


def find_files(pattern: str) -> list[Path]:
    """Return the files that match a glob, in the order of their paths.

    Raises:
        ConfigurationError: none does.
    """
    matches = (Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns
    files = sorted(path for path in matches if path.is_file())
    if not files:
        raise ConfigurationError(
            "NoData",
            f"data.text.path={pattern!r} matches no file; mount the data with template, or "
            f"correct the glob (it is matched inside the pod, and ** stands for any number of "
            f"directories)",
        )
    return files


def read_tokens(
    path: Path, *, tokenizer: Tokenizer, vocabulary_size: int
) -> Iterator[NDArray[np.uint32]]:
    """Yield the token ids of one file, piece by piece.

    Raises:
        ConfigurationError: it cannot be read, a line of it has no text, or an id is not in the
            vocabulary.
    """
    try:
        for tokens in _read(path, tokenizer, vocabulary_size):
            _check_vocabulary(path, tokens, vocabulary_size)
            yield tokens
    except OSError as error:
        raise ConfigurationError(
            "UnreadableData",
            f"data file {str(path)!r} cannot be read: {error.strerror}; make it readable to the "
            f"pod's user, or leave it out of data.text.path",
        ) from error


def _read(path: Path, tokenizer: Tokenizer, vocabulary_size: int) -> Iterator[NDArray[np.uint32]]:
    if path.suffix == BINARY:
        yield from _read_binary(path, "<u2" if vocabulary_size <= _UINT16_IDS else "<u4")
        return
    pieces = _read_jsonl(path) if path.suffix == ".jsonl" else _read_text(path)
    for piece in pieces:
        yield tokenizer.encode(piece)


def _read_binary(path: Path, dtype: str) -> Iterator[NDArray[np.uint32]]:
    width = np.dtype(dtype).itemsize
    size = path.stat().st_size
    if size % width:
        raise ConfigurationError(
            "InvalidData",
            f"data file {str(path)!r} has {size} bytes, not a multiple of {width}; tokens are "
            f"little-endian uint{8 * width} at this vocabularySize",
        )
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield np.frombuffer(piece, dtype=dtype).astype(np.uint32)


def _read_text(path: Path) -> Iterator[bytes]:
    last = b"\n"
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            piece += file.readline()  # to the end of the line: never cuts a character in two
            last = piece[-1:]
            yield piece
    if last != b"\n":
        yield b"\n"


def _read_jsonl(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            text = _text_of(line, f"{path}:{number}")
            yield text if text.endswith(b"\n") else text + b"\n"


def _text_of(line: bytes, place: str) -> bytes:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(
            "InvalidData", f"{place} is not JSON: {error}; a .jsonl file has one object a line"
        ) from error
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise ConfigurationError(
            "InvalidData",
            f"{place} has no field 'text' with a string; every line of a .jsonl file needs one",
        )
    return text.encode(errors="replace")


def _check_vocabulary(path: Path, tokens: NDArray[np.uint32], vocabulary_size: int) -> None:
    if tokens.size == 0:
        return
    largest = int(tokens.max())
    if largest >= vocabulary_size:
        raise ConfigurationError(
            "VocabularyTooSmall",
            f"data file {str(path)!r} has the token id {largest}, which is not below "
            f"model.vocabularySize={vocabulary_size}; set vocabularySize to at least "
            f"{largest + 1}, or use the tokenizer that the model is meant for",
        )
