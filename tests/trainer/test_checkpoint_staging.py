from __future__ import annotations

import pytest
import torch

from modelscaling_trainer.checkpoint.staging import Staging

FLOATS = [torch.float64, torch.float32, torch.bfloat16]


def test_copies_lie_one_after_the_other() -> None:
    first, second = torch.randn(3, 4), torch.randn(5)
    staging = Staging()
    staging.copy([first, second], ready=None)
    copied = torch.frombuffer(bytearray(staging.data), dtype=torch.float32)

    assert torch.equal(torch.cat([first.flatten(), second]), copied)


def test_a_cut_across_the_rows_is_copied_row_by_row() -> None:
    whole = torch.arange(12.0).view(3, 4)
    staging = Staging()
    staging.copy([whole[:, 1:3]], ready=None)

    assert staging.data.tobytes() == whole[:, 1:3].contiguous().numpy().tobytes()


def test_the_memory_is_kept_and_a_smaller_copy_has_its_own_size() -> None:
    staging = Staging()
    staging.copy([torch.ones(100)], ready=None)
    first = torch.frombuffer(staging.data, dtype=torch.float32).data_ptr()
    staging.copy([torch.zeros(10)], ready=None)
    second = torch.frombuffer(staging.data, dtype=torch.float32).data_ptr()

    assert first == second
    assert staging.data.nbytes == 40


def test_prepared_memory_is_what_the_copy_uses() -> None:
    staging = Staging()
    staging.prepare([torch.ones(100)], ready=None)
    prepared = torch.frombuffer(staging.data, dtype=torch.float32).data_ptr()
    staging.copy([torch.zeros(100)], ready=None)

    assert prepared == torch.frombuffer(staging.data, dtype=torch.float32).data_ptr()


def test_preparing_leaves_what_was_copied_into_enough_memory() -> None:
    staging = Staging()
    staging.copy([torch.zeros(100)], ready=None)
    staging.prepare([torch.ones(50)], ready=None)

    assert not any(staging.data)
    assert staging.data.nbytes == 400


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, -torch.nan], ids=str)
def test_what_is_not_finite_is_seen(dtype: torch.dtype, number: float) -> None:
    tensor = torch.randn(5, 7).to(dtype)
    tensor[3, 2] = number
    staging = Staging()
    staging.copy([torch.zeros(3, dtype=dtype), tensor], ready=None)

    assert not staging.is_finite()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    staging = Staging()
    staging.copy(
        [torch.tensor([limits.max, limits.min, limits.tiny, -0.0, 0.0], dtype=dtype)], ready=None
    )

    assert staging.is_finite()


def test_integers_are_always_finite() -> None:
    limits = torch.iinfo(torch.int64)
    staging = Staging()
    staging.copy([torch.tensor([limits.max, limits.min, -1])], ready=None)

    assert staging.is_finite()


def test_a_process_without_a_share_copies_nothing() -> None:
    staging = Staging()
    staging.copy([], ready=None)

    assert staging.data.nbytes == 0
    assert staging.is_finite()
