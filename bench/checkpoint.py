"""Time saving and loading 99 M parameters with AdamW, and what of it training waits for; against
torch.distributed.checkpoint, in turns in the same process.

    OMP_NUM_THREADS=1 python -m bench.checkpoint [--directory DIR] [--rounds 4] [--step-seconds 3]

One process; `taskset -c 0` gives it a single core, as a pod with one processor has.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modelscaling.growth.trained_model import TrainedModel
from modelscaling.layout import layout
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "ours"
PEER = "torch.distributed.checkpoint"

_SHAPE = ModelShape(
    layers=13,
    hidden_size=768,
    heads=12,
    kv_heads=6,
    head_size=64,
    feed_forward_size=2048,
    vocabulary_size=19_200,
    context_length=1024,
    tied_embeddings=True,
)


def make_shards() -> dict[str, Shard]:
    """Return weights and moments as a single process holds them."""
    return {
        f"{prefix}.{name}": Shard(torch.randn(piece.shape), piece)
        for prefix in ("model", "exp_avg", "exp_avg_sq")
        for name, piece in layout(_SHAPE, Mesh(), 0).items()
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long some work took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compute(seconds: float) -> None:
    """Multiply matrices, as the step does whose state is being copied."""
    matrix = torch.randn(1024, 1024)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)


def time_ours(
    writer: CheckpointWriter,
    directory: Path,
    shards: dict[str, Shard],
    *,
    step: int,
    step_seconds: float,
) -> dict[str, float]:
    """Save beside a step's work, then without work, then load."""

    def save(step: int) -> None:
        writer.save(shards, Counters(step=step), learning_rate=1e-3)

    def save_and_wait(step: int) -> None:
        save(step)
        writer.wait()

    blocked = seconds_of(lambda: save(step))
    compute(step_seconds)
    blocked += seconds_of(writer.settle)
    writer.wait()
    saved = seconds_of(lambda: save_and_wait(step + 1))
    found = find_newest(directory)
    assert found is not None
    return {
        "blocked_seconds": blocked,
        "save_seconds": saved,
        "load_seconds": seconds_of(lambda: found.load(shards)),
    }


def time_peer(directory: Path, shards: dict[str, Shard]) -> dict[str, float]:
    """Save and load the same tensors with torch.distributed.checkpoint, at its fastest here."""
    peer: Any = importlib.import_module(PEER)
    path = directory / "peer"
    tensors = {name: shard.tensor for name, shard in shards.items()}
    writer = peer.FileSystemWriter(path, thread_count=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        saved = seconds_of(lambda: peer.save(dict(tensors), storage_writer=writer, no_dist=True))
        loaded = seconds_of(
            lambda: peer.load(dict(tensors), checkpoint_id=path, no_dist=True),
        )
    shutil.rmtree(path)
    return {"save_seconds": saved, "load_seconds": loaded}


def measure(
    directory: Path, *, rounds: int, step_seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Return the seconds of each side in each round."""
    torch.set_num_threads(1)
    keep_freed_memory()
    shards = make_shards()
    writer = CheckpointWriter(directory, keep=1, tokenizer="byte")
    writer.begin_group("bench", model=TrainedModel(shape=_SHAPE), generation=1, rank=0, ranks=1)
    writer.prepare(shards)
    taken: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    for number in range(rounds):
        taken[OURS].append(
            time_ours(writer, directory, shards, step=2 * number, step_seconds=step_seconds)
        )
        taken[PEER].append(time_peer(directory, shards))
    return taken


def main() -> None:
    """Measure and print one line of JSON for each round and side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    imported = seconds_of(lambda: importlib.import_module(PEER))
    print(
        json.dumps({"parameters": _SHAPE.parameters(), "peer_import_seconds": round(imported, 2)})
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        taken = measure(Path(name), rounds=arguments.rounds, step_seconds=arguments.step_seconds)
    for side, rounds in taken.items():
        for seconds in rounds:
            rounded = {what: round(value, 3) for what, value in seconds.items()}
            print(json.dumps({"side": side, **rounded}))


if __name__ == "__main__":
    main()
