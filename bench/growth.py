"""Does growing pay? A small model that is trained, grown and trained on, against the large model
trained from scratch, for the same FLOPs, on real text, with three seeds; and beside them the small
model that never grows, which may be the best use of so few FLOPs.

As a user would do it: `modelscaling train`, `modelscaling grow` and `modelscaling train` again, on
the sources of Python's standard library as bytes. With the same seed both ways see the same samples
in the same order, and measure the same held-out ones; that is checked. The learning rate is
constant after warm-up and falls at the end (`growth_budget.py`). Losses are compared and no times,
so a busy machine takes longer and says the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from bench.case import model_spec
from bench.environment import compiled_modules
from bench.growth_budget import Budget
from bench.growth_result import SEEDS, Pair, table
from bench.processes import ProcessMark
from modelscaling.api.modelscaling import API_VERSION, KIND
from modelscaling.api.training import Precision, ScheduleShape
from modelscaling.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.growth_budget import Phase

DURATION = "10 to 15 minutes of one core"
"""With the default of steps."""
STEPS = 400
"""Of the model with twice the layers from scratch, by default; its FLOPs are everyone's."""

_BATCH = 8
_LEARNING_RATE = "3e-3"
_WARM_UP_STEPS = 20
_NEVER = 1_000_000
_BEFORE = "before growth"
_SMALL = ModelShape(
    layers=4,
    hidden_size=64,
    heads=2,
    kv_heads=2,
    head_size=32,
    feed_forward_size=192,
    vocabulary_size=256,
    context_length=128,
    tied_embeddings=True,
)
_DEEP = replace(_SMALL, layers=8)
_WIDE = replace(_SMALL, hidden_size=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """A way to grow."""

    name: str
    shape: ModelShape
    noise: float = 0.0


_GROWTHS = (
    _Growth(name="layers 4 to 8", shape=_DEEP),
    _Growth(name="hiddenSize 64 to 128, cloned", shape=_WIDE),
    _Growth(name="hiddenSize 64 to 128, cloned with noise 0.3", shape=_WIDE, noise=0.3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What a run said of itself."""

    loss: float
    """Over the held-out samples, after the last step; nats a token."""
    digests: Mapping[int, str]
    """Of all samples up to a step."""


def measure(*, steps: int) -> None:
    """Train all ways with all seeds, and print a table; a line for each run goes before it."""
    flops = steps * _BATCH * _DEEP.context_length * _DEEP.flops_per_token()
    budget = Budget(flops=flops, batch=_BATCH, small=_SMALL)
    print(f"\n## Does growing pay? Validation losses at {flops / 1e12:.2f} TFLOPs (PaLM) each\n")
    print(f"Takes about {DURATION} at the default of {STEPS} steps.\n", flush=True)
    pairs: dict[str, list[Pair]] = {growth.name: [] for growth in _GROWTHS}
    with tempfile.TemporaryDirectory() as name, compiled_modules() as compiled:
        environment = {**compiled, "XDG_CACHE_HOME": name}
        for seed in SEEDS:
            directory = Path(name) / f"seed{seed}"
            directory.mkdir()
            for growth, pair in _Seed(seed, budget, directory, environment).pairs().items():
                pairs[growth].append(pair)
    print()
    print("\n".join(table(pairs)))


class _Seed:
    """All runs with one seed."""

    def __init__(
        self, seed: int, budget: Budget, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self._seed = seed
        self._budget = budget
        self._directory = directory
        self._environment = environment

    def pairs(self) -> Mapping[str, Pair]:
        """Return the losses for each way to grow."""
        self._train(_BEFORE, self._budget.small_phase())
        scratch = {
            shape: self._train(
                f"{shape.layers} layers of {shape.hidden_size} from scratch",
                self._budget.scratch_phase(shape),
            )
            for shape in (_SMALL, _DEEP, _WIDE)
        }
        found = {}
        for growth in _GROWTHS:
            self._run(
                "grow",
                str(self._directory / _BEFORE),
                str(self._directory / growth.name),
                *_grow_options(growth, seed=self._seed),
            )
            grown = self._train(growth.name, self._budget.grown_phase(growth.shape))
            _check_samples(grown, scratch[growth.shape])
            found[growth.name] = Pair(
                grown=grown.loss, scratch=scratch[growth.shape].loss, small=scratch[_SMALL].loss
            )
        return found

    def _train(self, name: str, phase: Phase) -> _Trained:
        """Train, or train on, until the end of a phase; what is saved is named as this."""
        output = self._directory / name
        file = self._directory / "run.json"
        file.write_text(json.dumps(_document(phase, seed=self._seed)))
        lines = self._run("train", f"--file={file}", "--processes=1", f"--output={output}")
        steps = [line for line in map(json.loads, lines.splitlines()) if "sample_digest" in line]
        trained = _Trained(
            loss=steps[-1]["validation_loss"],
            digests={step["step"]: step["sample_digest"] for step in steps},
        )
        print(
            f"seed {self._seed}, {name}, {phase.shape.parameters():,} parameters, "
            f"step {phase.until_step}, {self._budget.tokens(phase):,} tokens: {trained.loss:.4f}",
            flush=True,
        )
        return trained

    def _run(self, *command: str) -> str:
        """Return the lines of JSON of our command; what it started ends with it.

        Raises:
            CalledProcessError: it failed; why is on standard error.
        """
        mark = ProcessMark()
        try:
            return subprocess.run(
                [sys.executable, "-m", "modelscaling.cli.main", *command, "--json"],
                env={**self._environment, **mark.environment()},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        finally:
            mark.end()


def _grow_options(growth: _Growth, *, seed: int) -> list[str]:
    changed = growth.shape.differences(asdict(_SMALL))
    shape = ",".join(f"{to_camel(name)}={value}" for name, (_, value) in changed.items())
    return [f"--shape={shape}", f"--seed={seed}", f"--noise={growth.noise}"]


def _check_samples(grown: _Trained, scratch: _Trained) -> None:
    """Hold both ways to have seen the same samples in the same order, as far as both went."""
    last = min(max(grown.digests), max(scratch.digests))
    if grown.digests[last] != scratch.digests[last]:
        raise RuntimeError(f"the runs saw other samples before step {last}; nothing is compared")


def _document(phase: Phase, *, seed: int) -> Mapping[str, Any]:
    """Return a run that ends with a phase."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "bench"},
        "spec": {
            "model": model_spec(phase.shape),
            "data": {
                "text": {"path": f"{sysconfig.get_path('stdlib')}/*.py"},
                "tokenizer": "Byte",
            },
            "training": {
                "tokens": phase.until_step * _BATCH * phase.shape.context_length,
                "globalBatchSize": _BATCH,
                "learningRate": _LEARNING_RATE,
                "schedule": {
                    "shape": ScheduleShape.WARMUP_STABLE_DECAY.value,
                    "warmupSteps": _WARM_UP_STEPS,
                    "decayFraction": f"{phase.decay_steps / phase.until_step:.6f}",
                },
                "precision": Precision.FLOAT32.value,
                "seed": seed,
                "compile": "Never",
                "validateEverySteps": _NEVER,
            },
        },
    }
