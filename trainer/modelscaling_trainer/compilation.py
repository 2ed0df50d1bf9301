"""Whether torch.compile earns back its compiler's time, and where its cache lies.

Where processes share matrix products, layers are never compiled: torch 2.15 compiles the DTensors
of tensor parallelism without a word, and trains on other gradients than it does uncompiled (two
processes on gloo: the same first loss, and 1e-3 nats apart after two steps at 3e-4).
"""

from __future__ import annotations

import os
import shutil
import weakref
from typing import TYPE_CHECKING

from modelscaling.api.training import CompileMode
from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from modelscaling.mesh import Mesh
    from modelscaling_trainer.model_part import ModelPart

_COMPILE_SECONDS = 30.0
"""What compiling takes with an empty cache."""
_WORTH = 20.0
"""A run must have so many times that left: compiling saves 5 to 20 % of it."""
_MEASURED_STEPS = 5
"""Steps to measure before deciding; the fastest counts, as the first ones warm up."""


class Compilation:
    """The decision for one process, made once. Ranks that have trained in the same groups make the
    same, as its inputs are; a newcomer, which has measured nothing yet, makes it some steps later.
    """

    def __init__(self, mode: CompileMode, device: torch.device) -> None:
        """Take the mode that the run declares.

        Raises:
            ConfigurationError: Always, on a CPU without a C++ compiler.
        """
        can_compile = device.type != "cpu" or _has_cpp_compiler()
        if mode is CompileMode.ALWAYS and not can_compile:
            raise ConfigurationError(
                "NoCompiler",
                "training.compile=Always needs a C++ compiler on a CPU, and none is there; set "
                "CXX or install g++ in the image, or set compile to Auto or Never",
            )
        self._mode = mode if can_compile else CompileMode.NEVER
        self._measured: list[float] = []
        self._compiled: weakref.ref[ModelPart] | None = None

    def check(self, mesh: Mesh) -> None:
        """Refuse a mesh whose layers cannot be compiled, where they always are to be.

        Raises:
            ConfigurationError: Always, with tensor parallelism.
        """
        if self._mode is CompileMode.ALWAYS and mesh.tensor > 1:
            raise ConfigurationError(
                "CannotCompile",
                f"training.compile=Always does not work with parallelism.tensor={mesh.tensor}, as "
                f"torch compiles that to other gradients; set compile to Auto or Never, or tensor "
                f"to 1",
            )

    def observe(self, step_seconds: float) -> None:
        """Take the time of a step, agreed by all ranks."""
        if len(self._measured) < _MEASURED_STEPS:
            self._measured.append(step_seconds)

    def apply_if_due(self, part: ModelPart, *, remaining_steps: int) -> bool:
        """Compile the layers from their next use on where that pays; return whether it was done."""
        is_compiled = self._compiled is not None and self._compiled() is part
        if part.mesh.tensor > 1 or is_compiled or not self._is_due(remaining_steps):
            return False
        self._compiled = weakref.ref(part)
        for stage in part.stages:
            stage.compile_layers()
        return True

    def _is_due(self, remaining_steps: int) -> bool:
        if self._mode is not CompileMode.AUTO:
            return self._mode is CompileMode.ALWAYS
        if len(self._measured) < _MEASURED_STEPS:
            return False
        return remaining_steps * min(self._measured) > _WORTH * _COMPILE_SECONDS


def use_cache(directory: Path) -> None:
    """Keep compiled code below a directory.

    Whatever the variable holds is replaced: importing torch sets it to a default.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory / "compiled")


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
