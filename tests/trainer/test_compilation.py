from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from modelscaling.api.training import CompileMode
from modelscaling.mesh import Mesh
from modelscaling_trainer.compilation import Compilation, use_cache
from modelscaling_trainer.errors import ConfigurationError
from tests.trainer.parts import make_part
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from modelscaling_trainer.model_part import ModelPart

CPU = torch.device("cpu")


@pytest.fixture
def part() -> ModelPart:
    return make_part(make_run("unused"))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ compiler on the path, as far as anybody looks before it is needed."""
    path = tmp_path / "g++"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return path


@pytest.mark.parametrize(
    ("mode", "step_seconds", "remaining_steps", "is_compiled"),
    [
        (CompileMode.NEVER, [9.0] * 5, 10**6, False),
        (CompileMode.ALWAYS, [], 1, True),
        (CompileMode.AUTO, [1.0] * 5, 1000, True),
        (CompileMode.AUTO, [1.0] * 5, 100, False),
        (CompileMode.AUTO, [1.0] * 4, 1000, False),
        (CompileMode.AUTO, [60.0, 0.1, 0.1, 0.1, 0.1], 1000, False),
    ],
    ids=[
        "never",
        "always, before anything is measured",
        "a long run",
        "a short run",
        "not yet measured",
        "a slow first step does not make a run long",
    ],
)
@pytest.mark.usefixtures("compiler")
def test_compile_where_it_pays(
    *,
    part: ModelPart,
    mode: CompileMode,
    step_seconds: list[float],
    remaining_steps: int,
    is_compiled: bool,
) -> None:
    compilation = Compilation(mode, CPU)
    for seconds in step_seconds:
        compilation.observe(seconds)

    assert is_compiled == compilation.apply_if_due(part, remaining_steps=remaining_steps)
    assert not compilation.apply_if_due(part, remaining_steps=remaining_steps)


def test_compiled_code_is_kept_where_it_is_wished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "what torch has set by itself")
    use_cache(tmp_path)

    assert Path(cache_dir()).is_relative_to(tmp_path)


def test_without_a_compiler_auto_does_without_and_always_is_refused(
    part: ModelPart, compiler: Path
) -> None:
    compiler.unlink()
    auto = Compilation(CompileMode.AUTO, CPU)
    for _ in range(5):
        auto.observe(60.0)

    assert not auto.apply_if_due(part, remaining_steps=10**6)
    with pytest.raises(ConfigurationError, match=r"compile=Always needs a C\+\+ compiler"):
        Compilation(CompileMode.ALWAYS, CPU)


@pytest.mark.usefixtures("compiler")
def test_a_part_that_was_compiled_is_not_held_beyond_its_use() -> None:
    part = make_part(make_run("unused"))
    held = weakref.ref(part)
    compilation = Compilation(CompileMode.ALWAYS, CPU)
    assert compilation.apply_if_due(part, remaining_steps=10)

    del part
    gc.collect()

    assert held() is None


@pytest.mark.usefixtures("compiler")
def test_tensor_parallelism_is_never_compiled(part: ModelPart) -> None:
    part.mesh = Mesh(tensor=2)
    auto = Compilation(CompileMode.AUTO, CPU)
    for _ in range(5):
        auto.observe(60.0)

    assert not auto.apply_if_due(part, remaining_steps=10**6)
    auto.check(part.mesh)
    with pytest.raises(ConfigurationError, match=r"compile=Always .* parallelism.tensor=2"):
        Compilation(CompileMode.ALWAYS, CPU).check(part.mesh)
    Compilation(CompileMode.ALWAYS, CPU).check(Mesh(dataShard=2, pipeline=2))
