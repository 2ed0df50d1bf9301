from __future__ import annotations

from dataclasses import replace

import pytest

from modelscaling.preset import PRESETS
from modelscaling.shape import FlopsConvention, divisors


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameters_are_the_published_count(preset: str, published: int) -> None:
    assert PRESETS[preset].parameters() == published


def test_flops_per_token_of_an_8b_model_differ_by_convention() -> None:
    shape = PRESETS["llama-3.1-8b"]

    giga = {c.value: round(shape.flops_per_token(c) / 1e9, 2) for c in FlopsConvention}

    assert giga == {"PaLM": 61.07, "NoEmbedding": 57.91, "Causal": 51.47}


def test_a_tied_table_counts_as_the_head_in_every_convention() -> None:
    shape = PRESETS["llama-3.2-1b"]

    assert shape.flops_per_token(FlopsConvention.PALM) == shape.flops_per_token(
        FlopsConvention.NO_EMBEDDING
    )


def test_heads_that_do_not_divide_are_refused_with_the_legal_values() -> None:
    with pytest.raises(ValueError, match=r"kvHeads=3 does not divide heads=32.*\[1, 2, 4, 8"):
        replace(PRESETS["llama-2-7b"], kv_heads=3)


def test_an_odd_head_size_is_refused() -> None:
    with pytest.raises(ValueError, match="headSize=127 is odd"):
        replace(PRESETS["llama-2-7b"], head_size=127)


def test_divisors_are_ascending_and_complete() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
