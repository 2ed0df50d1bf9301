from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from modelscaling.api.data import TokenizerFile
from modelscaling.configuration import DataConfiguration
from modelscaling_trainer.data.corpus import Corpus, open_corpus
from modelscaling_trainer.data.text_files import PIECE_BYTES
from modelscaling_trainer.data.tokenizer import open_tokenizer
from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


def open_data(pattern: Path | str, scratch: Path, **changes: Any) -> Corpus:
    vocabulary_size = changes.pop("vocabulary_size", 256)
    settings = {"path": str(pattern), "tokenizer": "Byte", "validation_fraction": 0.0, **changes}
    configuration = DataConfiguration.model_validate(settings)
    return open_corpus(configuration, vocabulary_size=vocabulary_size, scratch=scratch / "scratch")


def as_bytes(corpus: Corpus) -> bytes:
    return corpus.tokens.astype(np.uint8).tobytes()


def test_files_are_joined_in_the_order_of_their_paths_each_ending_its_line(
    data: Path, tmp_path: Path
) -> None:
    (data / "sub").mkdir()
    (data / "b.txt").write_bytes(b"second\n")
    (data / "a.py").write_bytes(b"first \xff")  # not UTF-8: bytes stay as they are
    (data / "sub" / "c.txt").write_bytes(b"third")
    (data / "empty.txt").write_bytes(b"")

    assert as_bytes(open_data(data / "**" / "*", tmp_path)) == b"first \xff\nsecond\nthird\n"


def test_a_file_longer_than_a_piece_is_whole(data: Path, tmp_path: Path) -> None:
    content = b"".join(b"line %d\n" % i for i in range(PIECE_BYTES // 5))
    (data / "long.txt").write_bytes(content)

    assert as_bytes(open_data(data / "*.txt", tmp_path)) == content


def test_jsonl_gives_the_text_of_each_line(data: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "één"}), "", json.dumps({"text": "two\n", "id": 7})]
    (data / "a.jsonl").write_text("\n".join(lines))

    assert as_bytes(open_data(data / "*.jsonl", tmp_path)).decode() == "één\ntwo\n"


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"),
    [(65_536, "<u2"), (65_537, "<u4")],
    ids=["uint16 up to 65536 ids", "uint32 above"],
)
def test_a_bin_file_is_tokens_as_they_are(
    data: Path, tmp_path: Path, vocabulary_size: int, dtype: str
) -> None:
    tokens = np.array([1, 2, vocabulary_size - 1, 0], dtype=dtype)
    tokens.tofile(data / "a.bin")
    corpus = open_data(data / "*.bin", tmp_path, vocabulary_size=vocabulary_size)

    assert tokens.tolist() == corpus.tokens.tolist()


def test_a_tokenizer_file_is_used(data: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"scale": 0, "the": 1, "model": 2, "[UNK]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (data / "a.txt").write_bytes(b"scale the \xff model")
    setting = TokenizerFile(file=str(tmp_path / "tokenizer.json"))
    corpus = open_data(data / "a.txt", tmp_path, tokenizer=setting, vocabulary_size=4)

    assert corpus.tokens.tolist() == [0, 1, 3, 2]
    assert corpus.tokenizer == open_tokenizer(setting).identity


@pytest.mark.parametrize(("name", "tokenizer"), [("a.txt", "byte"), ("a.bin", None)])
def test_the_default_tokenizer_says_nothing_of_files_of_ids(
    data: Path, tmp_path: Path, name: str, tokenizer: str | None
) -> None:
    (data / name).write_bytes(b"\1\0")

    assert open_data(data / "*", tmp_path).tokenizer == tokenizer


def test_the_second_opening_reads_the_cache(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "a.txt").write_bytes(b"text\n")
    first = open_data(data / "*.txt", tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tokenised twice")

    monkeypatch.setattr("modelscaling_trainer.data.corpus.read_tokens", refuse)
    second = open_data(data / "*.txt", tmp_path)

    assert as_bytes(first) == as_bytes(second)
    assert first.fingerprint == second.fingerprint


def test_a_changed_file_is_read_again_and_has_another_fingerprint(
    data: Path, tmp_path: Path
) -> None:
    file = data / "a.txt"
    file.write_bytes(b"text\n")
    first = open_data(file, tmp_path)
    file.write_bytes(b"next\n")
    os.utime(file, ns=(0, 12345))
    second = open_data(file, tmp_path)

    assert as_bytes(second) == b"next\n"
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_is_of_the_content_alone(data: Path, tmp_path: Path) -> None:
    (data / "a.txt").write_bytes(b"text\n")
    (data / "b.md").write_bytes(b"text\n")

    first, second = open_data(data / "*.txt", tmp_path), open_data(data / "*.md", tmp_path)

    assert first.fingerprint == second.fingerprint


def test_a_failure_leaves_nothing_that_looks_like_a_corpus(data: Path, tmp_path: Path) -> None:
    (data / "a.jsonl").write_text('{"text": "good"}\n{"no": "text"}\n')
    with pytest.raises(ConfigurationError):
        open_data(data / "*.jsonl", tmp_path)

    left = [path.name for path in (tmp_path / "scratch").iterdir() if path.suffix != ".lock"]
    assert left == []


@pytest.mark.parametrize(
    ("name", "content", "reason", "culprit"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "InvalidData", "a.jsonl:2 has no field"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "InvalidData", "a.jsonl:2 is not JSON"),
        ("a.jsonl", b'["text"]\n', "InvalidData", "a.jsonl:1 has no field 'text'"),
        ("a.bin", b"\1\0\2", "InvalidData", "3 bytes, not a multiple of 2"),
        ("a.bin", b"\0\1", "VocabularyTooSmall", "token id 256"),
    ],
    ids=["line without text", "line that is no JSON", "no object", "odd size", "id too large"],
)
def test_bad_data_is_refused_by_file_and_line(
    *, data: Path, tmp_path: Path, name: str, content: bytes, reason: str, culprit: str
) -> None:
    (data / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        open_data(data / "*", tmp_path)

    assert reason == refused.value.reason
    assert culprit in refused.value.message


def test_a_glob_without_a_file_is_refused_by_its_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing/\*\.txt' matches no file") as refused:
        open_data(tmp_path / "nothing" / "*.txt", tmp_path)

    assert refused.value.reason == "NoData"


def test_a_file_that_cannot_be_read_is_refused_by_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "a.txt").write_bytes(b"text")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("modelscaling_trainer.data.text_files._read_text", fail)
    with pytest.raises(ConfigurationError, match=r"a\.txt' cannot be read: Permission") as refused:
        open_data(data / "*.txt", tmp_path)

    assert refused.value.reason == "UnreadableData"


@pytest.mark.parametrize("content", [None, "{}"], ids=["missing", "not a tokenizer"])
def test_a_bad_tokenizer_file_is_refused_by_path(
    data: Path, tmp_path: Path, content: str | None
) -> None:
    (data / "a.txt").write_bytes(b"text")
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json") as refused:
        open_data(data / "*", tmp_path, tokenizer=TokenizerFile(file=str(path)))

    assert refused.value.reason == "InvalidTokenizer"
