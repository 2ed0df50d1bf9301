"""Time a training step of ours beside Hugging Face transformers, on one thread of a CPU.

    OMP_NUM_THREADS=1 python -m bench.train [--shape S] [--precision Float32] [--rounds 5]

S and XS are the models of examples/stdlib-20m.yaml and examples/stdlib-3m.yaml. All peers train
the same shape on the same batch (forward, backward, clipping to norm 1, AdamW), in turns within
each round, so that a machine that gets slower does so for all. What is compared is the median
over rounds of the ratio within a round. The peak is that of a square matrix product measured in
the same rounds. On a CPU without bfloat16 products BFloat16 would compare our fallback to float32
with an emulation that is up to 200 times slower, so the precision there is Float32 unless one is
asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from modelscaling.api.training import Precision, ScheduleShape
from modelscaling.configuration import OptimizerConfiguration
from modelscaling.shape import ModelShape
from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.device_peak import peak_flops
from modelscaling_trainer.gradient import Gradient
from modelscaling_trainer.initial_weights import set_initial_weights
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.precision import compute_dtype, has_bfloat16_products

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], float]

_WARMUP_STEPS = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained: a shape and the samples of a step."""

    shape: ModelShape
    batch: int


def _shape(layers: int, hidden: int, feed_forward: int, context: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        heads=8,
        kv_heads=4,
        head_size=hidden // 8,
        feed_forward_size=feed_forward,
        vocabulary_size=256,
        context_length=context,
        tied_embeddings=True,
    )


CASES = {
    "S": Case(shape=_shape(8, 512, 1536, 512), batch=8),
    "XS": Case(shape=_shape(4, 256, 768, 256), batch=16),
}


def ours(case: Case, precision: Precision, *, is_compiled: bool) -> Step:
    """Return a function that takes one step and returns its loss."""
    model = Decoder(case.shape, compute_dtype=compute_dtype(precision, _CPU))
    set_initial_weights(model, seed=0, layers=case.shape.layers)
    if is_compiled:
        model.compile_layers()
    optimizer = AdamW(model.parameters(), _optimizer_settings())
    gradient = Gradient(model.parameters())
    inputs, targets = _batch(case)

    def step() -> float:
        gradient.clear()
        loss = model.loss_sum(inputs, targets) / targets.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        gradient.clip(1.0)
        optimizer.step()
        return loss.item()

    return step


def hugging_face(case: Case, precision: Precision, *, is_compiled: bool) -> Step:
    """Return the same with transformers' Llama, under autocast for BFloat16 as its Trainer."""
    shape = case.shape
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.feed_forward_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_size,
            max_position_embeddings=shape.context_length,
            tie_word_embeddings=shape.tied_embeddings,
            use_cache=False,
        )
    )
    if is_compiled:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    inputs, targets = _batch(case)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.BFLOAT16):
            logits = model(inputs).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


PEERS: dict[str, tuple[Callable[..., Step], bool]] = {
    "ours": (ours, False),
    "ours, compiled": (ours, True),
    "transformers": (hugging_face, False),
    "transformers, compiled": (hugging_face, True),
}


def _batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (case.batch, case.shape.context_length + 1)
    tokens = torch.randint(case.shape.vocabulary_size, size, generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _optimizer_settings() -> OptimizerConfiguration:
    return OptimizerConfiguration(
        learning_rate=3e-4,
        schedule=ScheduleShape.COSINE,
        warmup_steps=0,
        decay_steps=1,
        minimum_learning_rate=3e-4,
        weight_decay=0.01,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        gradient_clip_norm=1.0,
    )


def measure(case: Case, precision: Precision, rounds: int, names: list[str]) -> dict[str, object]:
    """Return the seconds of a step of each peer, and their ratios to the best other."""
    steps = {name: _build(name, case, precision) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak_flops(_CPU, compute_dtype(precision, _CPU)))
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    tokens = case.batch * case.shape.context_length
    flops = case.shape.flops_per_token() * tokens
    peak = statistics.median(peaks)
    return {
        "peak_gflops": round(peak / 1e9, 1),
        "step_seconds": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "mfu_percent": {
            name: round(100 * flops / statistics.median(s) / peak, 1) for name, s in seconds.items()
        },
        "ratio": _ratios(seconds),
    }


def _build(name: str, case: Case, precision: Precision) -> Step:
    make, is_compiled = PEERS[name]
    step = make(case, precision, is_compiled=is_compiled)
    for _ in range(_WARMUP_STEPS):
        step()
    return step


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return our time over each peer's, as medians of the ratios within a round."""
    return {
        f"{mine} / {peer}": round(
            statistics.median(a / b for a, b in zip(seconds[mine], seconds[peer], strict=True)), 3
        )
        for mine in seconds
        for peer in seconds
        if mine.startswith("ours") and not peer.startswith("ours")
    }


def _usual_precision() -> Precision:
    return Precision.BFLOAT16 if has_bfloat16_products() else Precision.FLOAT32


def main() -> None:
    """Measure and print one line of JSON for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=[*CASES], action="append")
    parser.add_argument("--precision", choices=[*Precision], default=_usual_precision())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=[*PEERS], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in arguments.shape or CASES:
        measured = measure(
            CASES[name],
            Precision(arguments.precision),
            arguments.rounds,
            arguments.peer or [*PEERS],
        )
        print(json.dumps({"shape": name, "precision": arguments.precision, **measured}))


if __name__ == "__main__":
    main()
