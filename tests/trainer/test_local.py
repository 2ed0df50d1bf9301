from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from tests.shared.spec import make_spec
from tests.trainer import silent_name_server
from tests.trainer.runs import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_TIMEOUT_S = 120


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    objects: list[dict[str, Any]]
    errors: str


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small run on text that is there, after a resource of another kind."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} bottles of beer on the wall, " for n in range(2000)))
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "runs"}}
    run = {
        "apiVersion": "modelscaling.dev/v1alpha1",
        "kind": "ModelScaling",
        "metadata": {"name": "tiny"},
        "spec": make_spec(
            data__text={"path": str(text)},
            model__layers=1,
            model__hiddenSize=32,
            training__tokens=20 * 8 * 64,
            training__learningRate="3e-4",
            training__precision="Float32",
            training__compile="Never",
            training__validateEverySteps=10,
        ),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump_all([claim, run]))
    return path


def write_run(path: Path, run: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(run))
    return path


def start(
    file: Path, *options: str, within: Sequence[str] = (), errors: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a run with its caches beside the file; `within` is a command that runs its own, and
    `errors` is where Popen has its standard error go.
    """
    train = [sys.executable, "-m", "modelscaling.cli.main", "train", "-f", str(file), *options]
    return subprocess.Popen(
        [*within, *train],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(file.parent / "cache"), "OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str]) -> Ended:
    output, errors = process.communicate(timeout=_TIMEOUT_S)
    return Ended(process.returncode, [json.loads(line) for line in output.splitlines()], errors)


def train(file: Path, *options: str) -> Ended:
    return end(start(file, "--json", *options))


STEP_FIELDS = {"step", "loss", "tokens", "sample_digest", "step_seconds", "tokens_per_second"}


def test_one_and_two_processes_train_the_same_run_to_its_end(file: Path) -> None:
    one, two = train(file), train(file, "--processes", "2")

    for run, mesh in ((one, "single"), (two, "dp2")):
        assert run.code == 0, run.errors
        *steps, last = run.objects
        assert [step["step"] for step in steps] == list(range(1, 21))
        assert [step["tokens"] for step in steps] == [512 * n for n in range(1, 21)]
        measured = [step["step"] for step in steps if "validation_loss" in step]
        assert measured == [10, 20]
        assert all(set(step) - {"validation_loss"} == STEP_FIELDS for step in steps)
        assert last.keys() == {"done", "step", "parameters", "mesh", "checkpoint"}
        assert (last["done"], last["step"], last["mesh"]) == (True, 20, mesh)
        assert last["checkpoint"] is None
    assert [s["sample_digest"] for s in one.objects[:-1]] == [
        s["sample_digest"] for s in two.objects[:-1]
    ]
    for alone, together in zip(one.objects[:-1], two.objects[:-1], strict=True):
        assert alone["loss"] == pytest.approx(together["loss"], abs=1e-5)


def test_a_name_server_that_does_not_answer_breaks_no_group(file: Path) -> None:
    alone = ["unshare", "--map-root-user", "--net", "--mount", sys.executable]
    asks_nobody = [*alone, silent_name_server.__file__]

    ended = end(start(file, "--json", "--processes", "2", "--steps", "2", within=asks_nobody))

    assert ended.code == 0, ended.errors
    assert [step["step"] for step in ended.objects[:-1]] == [1, 2]
    assert "The hostname of the client socket cannot be retrieved" in ended.errors
    assert "lost the group" not in ended.errors


def test_a_run_that_stops_early_goes_on_exactly_there(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    first = train(file, "--output", str(output), "--steps", "7")
    assert first.code == 0, first.errors
    assert first.objects[-1]["step"] == 7
    assert first.objects[-1]["checkpoint"] == str(output / "step-00000007")

    second = train(file, "--output", str(output))

    assert second.code == 0, second.errors
    undisturbed = train(file)
    resumed = [(step["step"], step["loss"]) for step in second.objects[:-1]]
    assert resumed == [(step["step"], step["loss"]) for step in undisturbed.objects[7:-1]]


def test_a_run_grows_at_the_tokens_of_its_schedule_also_where_it_is_taken_up_again(
    file: Path, tmp_path: Path
) -> None:
    schedule = [{"tokens": 6 * 512, "layers": 2}, {"tokens": 60 * 512, "feedForwardSize": 192}]
    claim, run = yaml.safe_load_all(file.read_text())
    run["spec"]["model"]["growth"] = {"schedule": schedule}
    run["spec"]["training"]["tokens"] = 80 * 512
    file.write_text(yaml.safe_dump_all([claim, run]))
    options = ["--output", str(tmp_path / "output")]
    first = train(file, *options, "--steps", "70")
    second = train(file, *options, "--processes", "2")

    assert first.code == second.code == 0, first.errors + second.errors
    assert [one["step"] for one in first.objects[:-1]] == [*range(1, 71)]
    assert [one["step"] for one in second.objects[:-1]] == [*range(71, 81)]
    assert first.errors.count("growing to ") == 2
    assert "growing to " not in second.errors
    assert first.objects[-1]["parameters"] == second.objects[-1]["parameters"]
    description = json.loads((tmp_path / "output/step-00000080/checkpoint.json").read_text())
    assert [one["shape"]["layers"] for one in description["lineage"]] == [1, 2]
    grown_at = [one["step"] for one in description["lineage"]]
    assert grown_at[0] >= 6
    assert grown_at[1] >= 60


def test_a_run_goes_on_without_the_growth_that_raised_its_loss_also_where_it_is_taken_up_again(
    file: Path, tmp_path: Path
) -> None:
    claim, run = yaml.safe_load_all(file.read_text())
    run["spec"]["training"] |= {"tokens": "1B", "learningRate": "3e-3"}
    undisturbed = write_run(tmp_path / "undisturbed.yaml", run)
    schedule = [{"tokens": 40 * 512, "layers": 2}]
    run["spec"]["model"]["growth"] = {"mode": "Stack", "tolerance": "0", "schedule": schedule}
    file.write_text(yaml.safe_dump_all([claim, run]))
    options = ["--output", str(tmp_path / "output")]
    first = train_beyond("was taken back", file, *options, "--processes", "2")
    saved = len(first.objects)
    more = ("--steps", str(saved + 5))
    second, alone = train(file, *options, *more), train(undisturbed, *more)

    assert (first.code, second.code, alone.code) == (130, 0, 0), first.errors + second.errors
    steps = [*first.objects, *second.objects[:-1]]
    expected = alone.objects[:-1]
    assert [one["step"] for one in steps] == [*range(1, saved + 6)]
    assert [one["sample_digest"] for one in steps] == [one["sample_digest"] for one in expected]
    losses = [one["loss"] for one in expected]
    assert [one["loss"] for one in steps] == pytest.approx(losses, abs=1e-2)
    assert first.errors.count("growing to ") == 2
    assert second.errors.count("growing to ") == 1, "it is not tried again"
    [(tried, why, _)] = {taken_back(ended) for ended in (first, second)}
    assert tried.endswith(" parameters")
    assert why.startswith("growth took the validation loss from ")
    last = second.objects[-1]
    assert last["parameters"] == alone.objects[-1]["parameters"]
    rejected = last["rejected_growth"]
    assert rejected["parameters"] > last["parameters"]
    assert rejected["loss_after"] > rejected["loss_before"]
    assert rejected["allowed_rise"] == 0.0


def train_beyond(said: str, file: Path, *options: str) -> Ended:
    """Train until three steps after something was said, and then interrupt it."""
    process = start(file, "--json", *options, errors=subprocess.STDOUT)
    assert process.stdout is not None
    steps: list[dict[str, Any]] = []
    errors: list[str] = []
    said_at: int | None = None
    with process.stdout as lines:
        for line in lines:
            if not line.startswith('{"step": '):
                errors.append(line)
                said_at = len(steps) if said in line else said_at
                continue
            steps.append(json.loads(line))
            if said_at is not None and len(steps) == said_at + 3:
                process.send_signal(signal.SIGINT)
    return Ended(process.wait(_TIMEOUT_S), steps, "".join(errors))


def taken_back(ended: Ended) -> tuple[str, str, str]:
    """What growth a run has said to be taken back, why, and what it goes on with."""
    pattern = "growing to (.*) was taken back: (.*); going on with (.*), mesh "
    [said] = re.findall(pattern, ended.errors)
    tried, why, kept = said
    return tried, why, kept


def test_growth_that_was_declared_by_hand_and_raised_the_loss_ends_the_run(
    file: Path, tmp_path: Path
) -> None:
    changes = {"tokens": 60 * 512, "learningRate": "3e-3"}
    options = [f"--set=spec.training.{field}={value}" for field, value in changes.items()]
    options += ["--output", str(tmp_path / "output")]
    first = train(file, *options, "--steps", "40")
    growth = {"layers": "2", "growth.mode": "Stack", "growth.tolerance": "0"}
    second = train(file, *options, *[f"--set=spec.model.{at}={to}" for at, to in growth.items()])

    assert first.code == 0, first.errors
    assert second.code == 1
    assert second.objects == []
    assert "error: the run failed: GrowthRejected: growth took the validation loss" in second.errors


def test_a_run_that_learns_by_heart_warns_and_stops_early_at_its_best_checkpoint(
    file: Path, tmp_path: Path
) -> None:
    write_text(tmp_path, words=130).rename(file.parent / "text.txt")
    settings = {
        "data.validationFraction": "0.5",
        "training.tokens": "1M",
        "training.learningRate": "1e-2",
        "training.earlyStopping.patience": "6",
        "checkpoint.volume.emptyDir.medium": "Memory",
    }
    options = [f"--set=spec.{field}={value}" for field, value in settings.items()]

    ended = train(file, "--output", str(tmp_path / "output"), *options)

    assert ended.code == 0, ended.errors
    *steps, last = ended.objects
    measured = {s["step"]: s["validation_loss"] for s in steps if "validation_loss" in s}
    best = min(measured, key=lambda step: measured[step])
    assert last["reason"] == "EarlyStopped"
    assert last["step"] == best + 6 * 10 < 1_000_000 // (8 * 64)
    assert last["best_checkpoint"] == str(tmp_path / "output" / f"step-{best:08d}")
    assert Path(last["best_checkpoint"]).is_dir()
    assert f"warning: overfitting: The validation loss was best at step {best}" in ended.errors


def test_an_interrupt_saves_and_says_where(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    settings = {
        "training.tokens": "1B",
        "checkpoint.everySteps": "1000000",
        "checkpoint.volume.emptyDir.medium": "Memory",
    }
    options = [f"--set=spec.{field}={value}" for field, value in settings.items()]
    process = start(file, "--json", "--output", str(output), *options)
    assert process.stdout is not None
    step = json.loads(process.stdout.readline())["step"]

    process.send_signal(signal.SIGINT)

    code, objects, errors = end(process)
    assert code == 130, errors
    (checkpoint,) = output.glob("step-*")
    saved = int(checkpoint.name.removeprefix("step-"))
    assert saved == max([step, *(one["step"] for one in objects)])
    assert f"the run is saved in {checkpoint}" in errors


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_replaced_and_the_run_ends_as_if_nothing_had_been(
    file: Path, victim: int
) -> None:
    steps = 600  # more than the pipes take while nobody reads on
    tokens = ("--set", f"spec.training.tokens={steps * 8 * 64}")
    process = start(file, "--json", "--processes", "2", *tokens)
    assert process.stdout is not None
    while json.loads(process.stdout.readline())["step"] < 20:
        pass

    os.kill(workers(process)[victim], signal.SIGKILL)

    code, objects, errors = end(process)
    assert code == 0, errors
    assert f"rank {victim} was killed by SIGKILL" in errors
    *_, before_last, last = objects
    assert last["step"] == before_last["step"] == steps
    undisturbed = train(file, "--processes", "2", *tokens).objects[-2]
    assert before_last["sample_digest"] == undisturbed["sample_digest"]
    assert before_last["loss"] == pytest.approx(undisturbed["loss"], abs=1e-4)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train: the youngest generation below the command."""
    families = [[process.pid]]
    while families[-1]:
        families.append([child for parent in families[-1] for child in children(parent)])
    return families[-2]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_a_run_that_fails_at_the_same_step_again_and_again_ends_with_the_reason(
    file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "step-00000003").write_text("in the place of the checkpoint")

    ended = train(file, "--output", str(output), "--steps", "3")

    assert ended.code == 1
    assert "error: the run failed: CheckpointFailed: could not write a checkpoint" in ended.errors
    # It was tried again with what was in memory, from the step that was done.
    assert [step["step"] for step in ended.objects] == [1, 2]


def test_an_interrupted_run_that_cannot_be_saved_says_so(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    options = ("--output", str(output), "--set", "spec.training.tokens=1B")
    process = start(file, "--json", *options)
    assert process.stdout is not None
    process.stdout.readline()
    output.rename(tmp_path / "away")
    output.write_text("in the place of the directory")
    os.kill(process.pid, signal.SIGINT)
    ended = end(process)

    assert ended.code == 1
    assert "error: the run failed: CheckpointFailed: could not write a checkpoint" in ended.errors


def test_a_second_interrupt_ends_at_once(file: Path) -> None:
    process = start(file, "--json", "--set", "spec.training.tokens=1B")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    process.stderr.readline()  # what the first interrupt does
    os.kill(process.pid, signal.SIGINT)

    assert end(process).code == 130


def test_a_reader_that_leaves_ends_the_run_without_a_traceback(file: Path) -> None:
    process = start(file, "--json", "--set", "spec.training.tokens=1B")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()

    process.stdout.close()

    assert process.wait(_TIMEOUT_S) == 128 + signal.SIGPIPE
    with process.stderr as errors:
        assert "Traceback" not in errors.read()


def test_data_that_is_not_there_fails_the_run_with_its_path(file: Path) -> None:
    ended = train(file, "--set", "spec.data.text.path=/nowhere/*.txt")

    assert ended.code == 1
    assert ended.objects == []
    assert "/nowhere/*.txt" in ended.errors


def test_without_json_people_read_progress_on_standard_error(file: Path) -> None:
    ended = end(start(file))

    assert ended.code == 0
    assert ended.objects == []
    assert "tiny: " in ended.errors
    assert "step 20/20  loss " in ended.errors
    assert "done at step 20; nothing was saved" in ended.errors
