"""The number format of the matrix products on a device."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from modelscaling.api.training import Precision

_log = logging.getLogger(__name__)

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags in /proc/cpuinfo of processors with bfloat16 products (the last on Arm)."""


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type in which a run computes on a device.

    A CPU without bfloat16 products emulates them, up to 200 times slower than float32; there
    BFloat16 computes in float32, which is the more exact of the two.
    """
    if precision is Precision.FLOAT32:
        return torch.float32
    if device.type == "cpu" and not has_bfloat16_products():
        _log.warning("this CPU has no bfloat16 products; computing in float32")
        return torch.float32
    return torch.bfloat16


def has_bfloat16_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False  # not Linux
    flags = (line for line in lines if line.startswith(("flags", "Features")))
    return bool(_BFLOAT16_FLAGS & set(next(flags, "").split()))
