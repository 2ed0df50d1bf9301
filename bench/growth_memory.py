"""Memory and time that `modelscaling grow` takes for a model of 1.2 B parameters in bfloat16.

    python -m bench.growth_memory [--shape layers=20] [--directory DIR]

It writes a directory as Hugging Face publishes llama-3.2-1b, with weights that are drawn (2.5 GB),
and grows it. The peak is the resident size of the process, with PyTorch and all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modelscaling.layout import Piece, weights
from modelscaling.preset import PRESETS
from modelscaling_trainer.hugging_face.directory import HuggingFaceDirectory
from modelscaling_trainer.hugging_face.writing import write_directory
from modelscaling_trainer.model.initial_weights import initial_values

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.layout import Region

_PRESET = "llama-3.2-1b"
_MB = 1e6
_KIB = 1024


class _Draws:
    """A WeightSource of weights as a run begins with."""

    shape = PRESETS[_PRESET]

    def read(self, name: str, region: Region) -> Tensor:
        size = weights(self.shape)[name]
        piece = Piece(shape=size, region=region, copy=0, copies=1)
        return initial_values(name, piece, seed=0, layers=self.shape.layers)


def main() -> None:
    """Write, grow, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", default="layers=20", metavar="K=V,…")
    parser.add_argument("--directory", type=Path, help="where 6 GB and more are free")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        small, large = Path(name, "small"), Path(name, "large")
        # Of a process that was large itself, Linux counts that as its children's peak too.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_write, small).result()
        started = time.perf_counter()
        peak = _peak_bytes("grow", str(small), str(large), "--shape", options.shape)
        seconds = time.perf_counter() - started
        grown = HuggingFaceDirectory(large)
        largest = max(torch.Size(size).numel() for size in weights(grown.shape).values())
        whole = grown.shape.parameters() * grown.dtype.itemsize
        print(f"{seconds:.0f} s, peak {peak / _MB:.0f} MB, of imports {_idle_bytes() / _MB:.0f} MB")
        print(
            f"the largest tensor is {largest * grown.dtype.itemsize / _MB:.0f} MB as stored and "
            f"{4 * largest / _MB:.0f} MB in float32, the model {whole / _MB:.0f} MB"
        )


def _write(path: Path) -> None:
    write_directory(_Draws(), path, companions={}, dtype=torch.bfloat16)


def _idle_bytes() -> int:
    """Return what the trainer takes before it does anything."""
    return _peak_of([sys.executable, "-c", "import modelscaling_trainer.growth.offline"])


def _peak_bytes(*arguments: str) -> int:
    return _peak_of([sys.executable, "-m", "modelscaling.cli.main", *arguments])


def _peak_of(command: list[str]) -> int:
    """Return the peak resident size of a command."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return usage.ru_maxrss * _KIB


if __name__ == "__main__":
    main()
