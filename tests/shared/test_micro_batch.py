from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.mesh import Mesh
from modelscaling.micro_batch import legal_micro_batch_sizes, micro_batch_size


@pytest.mark.parametrize(
    ("part", "context_length", "mesh", "declared", "size"),
    [
        (8, 512, Mesh(), None, 8),
        (64, 512, Mesh(), None, 32),
        (48, 1024, Mesh(), None, 16),
        (7, 8192, Mesh(), None, 1),
        (4, 32_768, Mesh(), None, 1),
        (64, 512, Mesh(), 4, 4),
        (64, 512, Mesh(context=2), None, 64),
        (64, 512, Mesh(pipeline=2), None, 16),
        (6, 512, Mesh(pipeline=2), None, 1),
        (2, 512, Mesh(pipeline=2), None, 1),
        (64, 4096, Mesh(pipeline=2), None, 4),
        (12, 512, Mesh(pipeline=2, stagesPerProcess=2), None, 1),
        (4, 512, Mesh(pipeline=4), 1, 1),
    ],
    ids=[
        "the whole part where it fits",
        "half of it where it does not",
        "the largest divisor that fits",
        "one where only that divides",
        "one where even that is too long",
        "as declared",
        "twice as many where each process has half of a sample",
        "two micro batches for each pipeline stage",
        "more micro batches than twice the stages where nothing between divides",
        "one micro batch for each stage where there are no more samples",
        "smaller where what fills the pipeline does not fit",
        "twelve micro batches for four interleaved stages, where six are fewer than two each",
        "as declared where it just fills the pipeline",
    ],
)
def test_sizes(part: int, context_length: int, mesh: Mesh, declared: int | None, size: int) -> None:
    assert size == micro_batch_size(
        part, context_length=context_length, mesh=mesh, declared=declared
    )


@pytest.mark.parametrize(
    ("part", "mesh", "declared", "message"),
    [
        (
            12,
            Mesh(),
            5,
            (
                "microBatchSize=5 does not divide a process' part of the global batch, 12 samples; "
                "set it to one of [1, 2, 3, 4, 6, 12], or leave it out"
            ),
        ),
        (
            12,
            Mesh(pipeline=4),
            4,
            (
                "microBatchSize=4 cuts a process' part of the global batch, 12 samples, into 3 "
                "micro batches, not into at least the 4 micro batches that 4 pipeline stages need; "
                "set it to one of [1, 2, 3], or leave it out"
            ),
        ),
        (
            10,
            Mesh(pipeline=2, stagesPerProcess=2),
            2,
            (
                "microBatchSize=2 cuts a process' part of the global batch, 10 samples, into 5 "
                "micro batches, not into at least the 4 micro batches that 4 pipeline stages need, "
                "a multiple of pipeline=2; set it to one of [1], or leave it out"
            ),
        ),
        (
            3,
            Mesh(pipeline=4, dataShard=2),
            None,
            (
                "globalBatchSize=6 leaves 3 samples to each of 2 data-parallel parts, which do "
                "not make at least the 4 micro batches that 4 pipeline stages need; set "
                "globalBatchSize to a multiple of 8, or lower pipeline or stagesPerProcess"
            ),
        ),
    ],
    ids=[
        "a size that does not divide",
        "a size that leaves a stage without work",
        "a size that breaks the rounds of interleaved stages",
        "a batch that leaves a stage without work at any size",
    ],
)
def test_what_cannot_be_computed_is_refused_with_what_can(
    part: int, mesh: Mesh, declared: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match="set") as error:
        micro_batch_size(part, context_length=8, mesh=mesh, declared=declared)

    assert message == str(error.value)


@given(
    st.integers(1, 96),
    st.integers(1, 8192),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_the_size_chosen_is_always_a_legal_one_if_there_is_any(
    part: int, context_length: int, pipeline: int, laps: int, context: int
) -> None:
    mesh = Mesh(pipeline=pipeline, context=context, stagesPerProcess=laps if pipeline > 1 else 1)
    legal = legal_micro_batch_sizes(part, mesh)
    if not legal:
        with pytest.raises(ValueError, match="globalBatchSize"):
            micro_batch_size(part, context_length=context_length, mesh=mesh, declared=None)
        return

    size = micro_batch_size(part, context_length=context_length, mesh=mesh, declared=None)

    assert part % size == 0
    assert pipeline == 1 or part // size >= mesh.stages
    assert mesh.stagesPerProcess == 1 or part // size % pipeline == 0
