"""ModelScaling as a contender: the run of a worker process, with all that it does in a step."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.contest import Contender
from modelscaling.api.data import BuiltInTokenizer
from modelscaling.api.training import (
    ActivationCheckpointing,
    CompileMode,
    Precision,
    ScheduleShape,
)
from modelscaling.configuration import (
    DataConfiguration,
    OptimizerConfiguration,
    RunConfiguration,
    TrainingConfiguration,
)
from modelscaling.mesh import Mesh
from modelscaling_trainer.group import Group
from modelscaling_trainer.request import Requests
from modelscaling_trainer.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.case import Case
    from bench.contest import Place

_STEPS = 1_000_000
_TEXT_BYTES = 1 << 20
_MEETING_TIMEOUT_S = 60.0
_POLL_S = 0.01


def ours(
    case: Case, precision: Precision, *, mesh: Mesh | None = None, is_compiled: bool = False
) -> Contender:
    """Return our trainer on a mesh, named after it."""
    mesh = mesh or Mesh()
    name = "ours" if mesh.size == 1 else f"ours {mesh}"
    return Contender(
        name=f"{name}, compiled" if is_compiled else name,
        train=partial(_train, case=case, precision=precision, mesh=mesh, is_compiled=is_compiled),
        processes=mesh.size,
    )


def write_text(directory: Path) -> Path:
    """Write a text without any order in it, the same each time; return where."""
    path = directory / "text.txt"
    draw = random.Random(0)  # noqa: S311 - nothing secret
    _write(path, "".join(draw.choices("abcdefgh \n", k=_TEXT_BYTES)))
    return path


def _train(
    place: Place,
    end_turn: Callable[[], None],
    *,
    case: Case,
    precision: Precision,
    mesh: Mesh,
    is_compiled: bool,
) -> None:
    torch.set_num_threads(1)
    scratch = place.directory / f"rank{place.rank}"
    scratch.mkdir()
    run = Run(
        make_configuration(case, precision, write_text(place.directory), is_compiled=is_compiled),
        device=torch.device("cpu"),
        scratch=scratch,
        checkpoint_directory=None,
    )
    port_file = place.directory / "port"
    group = Group(
        generation=1,
        mesh=mesh,
        rank=place.rank,
        local_rank=place.rank,
        store_host="127.0.0.1",
        store_port=None if place.rank == 0 else _wait_for_port(port_file),
    )
    run.train(
        group,
        requests=Requests(),
        on_store_port=lambda port: _write(port_file, str(port)),
        on_progress=lambda _: end_turn(),
        on_phase=lambda _: None,
    )


def _write(path: Path, text: str) -> None:
    """Write a file that other processes never see unfinished."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text)
    unfinished.rename(path)


def _wait_for_port(path: Path) -> int:
    deadline = time.monotonic() + _MEETING_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 told no port within {_MEETING_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
    return int(path.read_text())


def make_configuration(
    case: Case, precision: Precision, text: Path, *, is_compiled: bool = False
) -> RunConfiguration:
    """Return a run on this text that does not end and keeps no checkpoints."""
    return RunConfiguration(
        model=case.shape,
        data=DataConfiguration(
            path=str(text), tokenizer=BuiltInTokenizer.BYTE, validation_fraction=0.0
        ),
        training=TrainingConfiguration(
            total_steps=_STEPS,
            global_batch_size=case.batch,
            micro_batch_size=None,
            precision=precision,
            seed=0,
            compile=CompileMode.ALWAYS if is_compiled else CompileMode.NEVER,
            activation_checkpointing=ActivationCheckpointing.NONE,
            validate_every_steps=0,
        ),
        optimizer=OptimizerConfiguration(
            learning_rate=3e-4,
            schedule=ScheduleShape.COSINE,
            warmup_steps=0,
            decay_steps=_STEPS,
            minimum_learning_rate=3e-4,
            weight_decay=0.01,
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-8,
            gradient_clip_norm=1.0,
        ),
        checkpoint=None,
    )
