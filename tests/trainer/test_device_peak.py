from __future__ import annotations

import pytest
import torch

from modelscaling_trainer.device_peak import peak_flops


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA A10G", torch.bfloat16, 125e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
    ],
)
def test_known_gpus_have_their_published_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, peak: float
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)

    assert peak == peak_flops(torch.device("cuda"), dtype)


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
