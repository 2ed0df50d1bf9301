from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.api.training import Precision
from modelscaling_trainer.precision import compute_dtype, has_bfloat16_products

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("cpuinfo", "has_them"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor : 0\nflags\t\t: fpu avx2\n", False),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("", False),
    ],
    ids=["x86 with", "x86 without", "Arm with", "nothing known"],
)
def test_the_processor_says_whether_it_multiplies_bfloat16(
    tmp_path: Path,
    cpuinfo: str,
    has_them: bool,  # noqa: FBT001
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)

    assert has_them == has_bfloat16_products(path)
    assert not has_bfloat16_products(tmp_path / "missing")


@pytest.mark.parametrize("has_them", [True, False], ids=["with products", "without"])
def test_bfloat16_is_computed_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch,
    has_them: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr("modelscaling_trainer.precision.has_bfloat16_products", lambda: has_them)
    cpu = torch.device("cpu")

    expected = torch.bfloat16 if has_them else torch.float32
    assert expected is compute_dtype(Precision.BFLOAT16, cpu)
    assert compute_dtype(Precision.BFLOAT16, torch.device("cuda")) is torch.bfloat16
    assert compute_dtype(Precision.FLOAT32, cpu) is torch.float32
