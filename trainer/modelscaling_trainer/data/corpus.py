"""The corpus as one memory-mapped stream of token ids, made once in a pod and shared by its
processes.

The cache is a directory that appears by a rename when it is whole: a process that dies while it
writes leaves nothing that another could take for a corpus. A lock lets one process of a pod do
the work while the others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np

from modelscaling_trainer.data.text_files import BINARY, find_files, read_tokens
from modelscaling_trainer.data.tokenizer import ByteTokenizer, open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from modelscaling.configuration import DataConfiguration
    from modelscaling_trainer.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_VERSION = 1
"""Part of the cache's name: a change of how text becomes tokens makes a new cache."""

_TOKENS = "tokens"
_DESCRIPTION = "corpus.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A stream of token ids."""

    tokens: NDArray[np.unsignedinteger]
    """All ids, memory-mapped."""
    fingerprint: str
    """A digest of the ids: two pods with equal fingerprints read the same data."""
    tokenizer: str | None
    """The identity of the tokenizer that its ids are of; None where nobody has declared it."""


def open_corpus(data: DataConfiguration, *, vocabulary_size: int, scratch: Path) -> Corpus:
    """Return the corpus of a run, from the cache below `scratch` where it is already there.

    Raises:
        ConfigurationError: no file matches, one cannot be read, or an id is not in the
            vocabulary.
    """
    files = find_files(data.path)
    tokenizer = open_tokenizer(data.tokenizer)
    cache = scratch / f"corpus-{_cache_key(files, tokenizer, vocabulary_size)}"
    with _lock(cache.with_suffix(".lock")):
        if not cache.exists():
            _write_cache(cache, files, tokenizer, vocabulary_size)
    return _read_cache(cache, tokenizer=_declared(files, tokenizer))


def _declared(files: list[Path], tokenizer: Tokenizer) -> str | None:
    """Return the identity of a corpus' tokenizer. Byte is the default, so that beside files of ids
    it says nothing of these.
    """
    is_default = tokenizer.identity == ByteTokenizer.identity
    if is_default and any(path.suffix == BINARY for path in files):
        return None
    return tokenizer.identity


def _cache_key(files: list[Path], tokenizer: Tokenizer, vocabulary_size: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{_VERSION} {tokenizer.identity} {vocabulary_size}".encode())
    for path in files:
        status = path.stat()
        digest.update(f"\n{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_cache(
    cache: Path, files: list[Path], tokenizer: Tokenizer, vocabulary_size: int
) -> None:
    temporary = cache.parent / mkdtemp(prefix=f"{cache.name}.", dir=cache.parent)
    try:
        _write_tokens(temporary, files, tokenizer, vocabulary_size)
        temporary.rename(cache)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_tokens(
    directory: Path, files: list[Path], tokenizer: Tokenizer, vocabulary_size: int
) -> None:
    dtype = np.min_scalar_type(vocabulary_size - 1)
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with (directory / _TOKENS).open("wb") as file:
        for path in files:
            for tokens in read_tokens(path, tokenizer=tokenizer, vocabulary_size=vocabulary_size):
                file.write(tokens.astype(dtype).tobytes())
                digest.update(tokens.tobytes())
                count += tokens.size
    description = {"dtype": dtype.name, "count": count, "fingerprint": digest.hexdigest()}
    (directory / _DESCRIPTION).write_text(json.dumps(description))
    _log.info("read the corpus", extra={"files": len(files), "tokens": count})


def _read_cache(cache: Path, *, tokenizer: str | None) -> Corpus:
    description = json.loads((cache / _DESCRIPTION).read_text())
    dtype, count = np.dtype(description["dtype"]), description["count"]
    tokens = (
        np.memmap(cache / _TOKENS, dtype=dtype, mode="r", shape=(count,))
        if count
        else np.empty(0, dtype)  # an empty file cannot be mapped
    )
    return Corpus(tokens=tokens, fingerprint=description["fingerprint"], tokenizer=tokenizer)
