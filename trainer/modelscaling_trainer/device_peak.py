"""The peak of a device, FLOP/s, that model FLOPs utilisation is measured against."""

from __future__ import annotations

import time

import torch

_GPUS: tuple[tuple[str, float, float], ...] = (
    # name in torch.cuda.get_device_name, dense bfloat16, float32 (NVIDIA's data sheets)
    ("B200", 2250e12, 80e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("A10", 125e12, 31.2e12),
)
_MATRIX = 1024
_TRIES = 4


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the published peak of a known GPU, else that of a short matrix product, measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, bfloat16, float32 in _GPUS:
            if known in name:
                return bfloat16 if dtype is torch.bfloat16 else float32
    return _measure(device, dtype)


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.ones(_MATRIX, _MATRIX, dtype=dtype, device=device)
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        # Reading an element waits for a GPU to be done.
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return float(2 * _MATRIX**3 / min(seconds))
