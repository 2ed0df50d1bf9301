from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from modelscaling.cli import train, trainer
from modelscaling.cli.error import UsageError
from modelscaling.cli.main import main
from tests.shared.spec import make_spec
from tests.shared.test_cli_resource import make_document

if TYPE_CHECKING:
    from modelscaling.local_run import LocalRun


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    spec = make_spec(replicas=2, processesPerReplica=2)
    path.write_text(yaml.safe_dump_all([{"kind": "Secret"}, make_document(spec=spec)]))
    return str(path)


def resolve(*arguments: str) -> LocalRun:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.resolve(parser.parse_args(arguments))


def test_a_run_takes_its_processes_from_the_spec(file: str) -> None:
    run = resolve("-f", file)

    assert run.mesh.size == 4
    assert run.name == "tiny"
    assert run.configuration.training.total_steps == 125


def test_processes_stand_for_replicas_times_processes_per_replica(file: str) -> None:
    assert resolve("-f", file, "--processes", "1").mesh.size == 1


def test_the_limits_of_pods_do_not_hold_on_this_machine(tmp_path: Path) -> None:
    limits = {"resources": {"limits": {"memory": "1Mi"}}}
    template = {"spec": {"containers": [{"name": "trainer", **limits}]}}
    path = tmp_path / "limited.yaml"
    path.write_text(yaml.safe_dump(make_document(spec=make_spec(template=template))))

    assert resolve("-f", str(path)).mesh.size == 1


@pytest.fixture
def growing_file(tmp_path: Path) -> str:
    schedule = [{"tokens": "16k", "layers": 3}, {"tokens": "32k", "layers": 4}]
    path = tmp_path / "growing.yaml"
    path.write_text(yaml.safe_dump(make_document(spec=make_spec(model__growth__schedule=schedule))))
    return str(path)


def test_a_run_knows_what_it_grows_to(growing_file: str, tmp_path: Path) -> None:
    run = resolve("-f", growing_file, "--processes", "2", "--output", str(tmp_path))

    assert [
        run.after(tokens).configuration.model.layers for tokens in (15_999, 16_000, 40_000)
    ] == [
        2,
        3,
        4,
    ]
    assert run.after(15_999) is run
    for stage in run.stages:
        assert stage.mesh.size == 2
        assert stage.configuration.checkpoint == run.configuration.checkpoint is not None


def test_a_run_that_keeps_a_model_of_before_still_has_those_that_are_ahead(
    growing_file: str,
) -> None:
    run = resolve("-f", growing_file)
    (two, three, _) = (stage.configuration.model for stage in run.stages)

    kept = run.after(16_000).keeping(two)
    assert kept is not None
    assert kept.configuration.model.layers == 2
    assert kept.after(31_999) is kept
    assert kept.after(32_000).configuration.model.layers == 4
    last = kept.after(32_000).keeping(two)
    assert last is not None
    assert last.after(64_000) is last
    assert run.after(32_000).keeping(three) == run.after(16_000).model_copy(
        update={"stages": run.stages[:2]}
    )
    assert run.keeping(three) is None, "what is ahead is nothing to go back to"


def test_a_run_of_a_cluster_is_none_to_begin_with_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "after.yaml"
    spec = make_spec(
        model__initFrom={"modelScaling": {"name": "small"}}, checkpoint__volume={"emptyDir": {}}
    )
    path.write_text(yaml.safe_dump(make_document(spec=spec)))

    with pytest.raises(UsageError, match=r"small is a run of a cluster.* model\.initFrom\.check"):
        resolve("-f", str(path))


def test_settings_change_the_run(file: str) -> None:
    run = resolve("-f", file, "--set", "spec.training.tokens=512", "--set", "spec.model.layers=3")

    assert run.configuration.training.total_steps == 1
    assert run.configuration.model.layers == 3


def test_without_an_output_directory_the_run_keeps_no_checkpoints(file: str) -> None:
    run = resolve("-f", file)

    assert run.output is None
    assert run.configuration.checkpoint is None


def test_an_output_directory_is_saved_to_as_often_as_the_api_says(file: str) -> None:
    run = resolve("-f", file, "--output", "runs/a")

    assert run.output == Path.cwd() / "runs/a"
    assert run.configuration.checkpoint is not None
    assert run.configuration.checkpoint.every_steps == 200
    assert run.configuration.checkpoint.keep == 3


def test_an_early_stop_leaves_the_schedule_alone(file: str) -> None:
    run = resolve("-f", file, "--steps", "7")

    assert run.stop_at_step == 7
    assert run.configuration == resolve("-f", file).configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--processes", "3"],
            "spec.training.globalBatchSize: 8 is not divisible by the data-parallel size 3",
            id="a batch that cannot be cut",
        ),
        pytest.param(
            ["--processes", "100"],
            "spec.processesPerReplica: 100 is not valid",
            id="too many processes",
        ),
        pytest.param(
            ["--set", "spec.model.heads=5"],
            "hiddenSize=64 is not divisible by heads=5",
            id="a setting that breaks a rule",
        ),
        pytest.param(["--set", "spec.modle=5"], "'modle' is not a field", id="an unknown field"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_starts(
    file: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve("-f", file, *arguments)


def test_without_torch_it_says_what_to_install(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "find_spec", lambda name: None if name == "torch" else name)

    assert main(["train", "-f", file]) == 2

    assert capsys.readouterr().err == (
        "error: torch is not installed; run: pip install 'modelscaling[trainer]'\n"
    )
