from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from modelscaling.preset import PRESETS
from modelscaling.shape import FlopsConvention, ModelShape, divisors


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("mistral-nemo-base-2407", 12_247_782_400),
        ("mistral-small-24b-base-2501", 23_572_403_200),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("olmo-2-1b", 1_484_916_736),
        ("olmo-2-7b", 7_298_617_344),
        ("olmo-2-13b", 13_716_198_400),
        ("olmo-2-32b", 32_234_279_936),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
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


def test_a_shape_survives_json() -> None:
    for shape in PRESETS.values():
        assert ModelShape.from_fields(json.loads(json.dumps(asdict(shape)))) == shape


def test_fields_that_an_older_version_did_not_write_are_those_of_llama() -> None:
    shape = PRESETS["llama-2-7b"]
    newer = ("qkv_bias", "qk_norm", "norm_after", "rope_scaling", "sliding_window")
    written = {name: value for name, value in asdict(shape).items() if name not in newer}

    assert ModelShape.from_fields(written) == shape


def test_shapes_differ_in_fields_that_are_named() -> None:
    shape = PRESETS["llama-3-8b"]
    other = replace(shape, layers=3, context_length=7)

    assert shape.differences(asdict(shape)) == {}
    assert shape.differences(asdict(other)) == {"layers": (3, 32), "context_length": (7, 8192)}


@pytest.mark.parametrize(("context", "window"), [(4096, None), (4097, 4096)])
def test_a_window_as_long_as_the_context_hides_nothing(context: int, window: int | None) -> None:
    assert replace(PRESETS["mistral-7b-v0.1"], context_length=context).window == window


def test_heads_that_do_not_divide_are_refused_with_the_legal_values() -> None:
    with pytest.raises(ValueError, match=r"kvHeads=3 does not divide heads=32.*\[1, 2, 4, 8"):
        replace(PRESETS["llama-2-7b"], kv_heads=3)


def test_an_odd_head_size_is_refused() -> None:
    with pytest.raises(ValueError, match="headSize=127 is odd"):
        replace(PRESETS["llama-2-7b"], head_size=127)


def test_divisors_are_ascending_and_complete() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
