"""The smallest script that torchrun can restart without losing a step: our model under
DistributedDataParallel or fully_shard, and a checkpoint after each step.

Started by torchrun, as in `torchrun -m bench.torchrun_script S --directory DIR
--timeout-seconds 10`. The model is ours so that both sides start the same one, and with no imports
but PyTorch's. DIR is best in memory: that is the best that a checkpoint can do, where those of real
runs are on a volume and some hundred steps old. Each process writes a line at the beginning and at
the end of each step (`bench.step_log`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from bench import peer
from bench.case import ELASTIC_CASES
from bench.step_log import StepMoment
from modelscaling_trainer.model.decoder import Decoder

if TYPE_CHECKING:
    from bench.case import Case

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class _Checkpoint:
    """The whole state of model and optimizer in one file, for any number of processes."""

    def __init__(self, directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._path = directory / "checkpoint"
        self._model = model
        self._optimizer = optimizer

    def load(self) -> int:
        """Return how many steps were done when it was saved; 0 where none was."""
        if not self._path.exists():
            return 0
        state: dict[str, Any] = torch.load(self._path, mmap=True)
        set_state_dict(
            self._model,
            self._optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_WHOLE,
        )
        return int(state["step"])

    def save(self, step: int) -> None:
        """Replace the last one; the first rank writes the file."""
        model, optimizer = get_state_dict(self._model, self._optimizer, options=_WHOLE)
        if dist.get_rank() == 0:
            unfinished = self._path.with_suffix(".unfinished")
            torch.save({"step": step, "model": model, "optimizer": optimizer}, unfinished)
            unfinished.rename(self._path)


def main() -> None:
    """Train for ever, from the checkpoint on if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", choices=[*ELASTIC_CASES])
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--timeout-seconds", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=arguments.timeout_seconds))
    case = ELASTIC_CASES[arguments.case]
    model = _model(case, is_sharded=arguments.sharded, is_bfloat16=arguments.bfloat16)
    optimizer = peer.make_optimizer(model)
    batch = peer.make_batch(case, rank=dist.get_rank(), size=dist.get_world_size())
    checkpoint = _Checkpoint(arguments.directory, model, optimizer)
    step = checkpoint.load()
    while True:
        step += 1
        _say(step, has_ended=False)
        peer.take_step(model, model, optimizer, batch=batch, has_autocast=False)
        _say(step, has_ended=True)
        checkpoint.save(step)


def _model(case: Case, *, is_sharded: bool, is_bfloat16: bool) -> nn.Module:
    decoder = Decoder(case.shape, compute_dtype=torch.bfloat16 if is_bfloat16 else torch.float32)
    for weight in decoder.parameters():
        nn.init.normal_(weight, std=0.02)
    if not is_sharded:
        return nn.parallel.DistributedDataParallel(decoder, gradient_as_bucket_view=True)
    for block in decoder.blocks():
        fully_shard(block)
    fully_shard(decoder)
    return decoder


def _say(step: int, *, has_ended: bool) -> None:
    moment = StepMoment(
        pid=os.getpid(),
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        step=step,
        has_ended=has_ended,
        time=time.time(),
    )
    sys.stdout.write(moment.line())
    sys.stdout.flush()


if __name__ == "__main__":
    main()
