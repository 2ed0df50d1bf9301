from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling_trainer.data.corpus import Corpus
from modelscaling_trainer.data.samples import VALIDATION_TOKENS, Samples
from modelscaling_trainer.errors import ConfigurationError


def make_samples(
    tokens: int, *, context_length: int = 4, fraction: float = 0.0, seed: int = 0
) -> Samples:
    corpus = Corpus(tokens=np.arange(tokens, dtype=np.uint32), fingerprint="", tokenizer="byte")
    return Samples(corpus, context_length=context_length, validation_fraction=fraction, seed=seed)


@given(
    tokens=st.integers(20, 2000),
    context_length=st.integers(2, 9),
    fraction=st.floats(0, 0.5),
    seed=st.integers(0, 2**31 - 1),
)
def test_each_sample_is_trained_on_or_held_out(
    tokens: int, context_length: int, fraction: float, seed: int
) -> None:
    samples = make_samples(tokens, context_length=context_length, fraction=fraction, seed=seed)
    training, _ = samples.training(np.arange(samples.training_count))
    held_out, _ = samples.held_out(np.arange(samples.held_out_count))

    first_tokens = sorted([*training[:, 0].tolist(), *held_out[:, 0].tolist()])
    assert first_tokens == list(
        range(0, (tokens - 1) // context_length * context_length, context_length)
    )
    assert (fraction > 0) == (samples.held_out_count > 0)


def test_targets_are_the_next_tokens() -> None:
    inputs, targets = make_samples(41).training(np.array([3, 0, 7]))

    assert inputs.shape == (3, 4)
    assert (inputs + 1).tolist() == targets.tolist()


def test_the_split_follows_the_seed() -> None:
    def held_out(seed: int) -> list[int]:
        samples = make_samples(4001, fraction=0.1, seed=seed)
        return sorted(samples.held_out(np.arange(samples.held_out_count))[0][:, 0].tolist())

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)


@pytest.mark.parametrize(
    ("tokens", "fraction", "measured"),
    [
        (401, 0.0, 0),
        (401, 0.01, 1),
        (401, 0.5, 50),
        (1_000_001, 0.5, VALIDATION_TOKENS // 4),
    ],
    ids=["none held out", "at least one", "all that are held out", "bounded"],
)
def test_the_validation_is_bounded(tokens: int, fraction: float, measured: int) -> None:
    assert measured == make_samples(tokens, fraction=fraction).validation_count


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_data_shorter_than_a_sample_is_refused_with_both_lengths(tokens: int) -> None:
    with pytest.raises(ConfigurationError, match=f"has {tokens} tokens.*contextLength=4 needs 5"):
        make_samples(tokens)
