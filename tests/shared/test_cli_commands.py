from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from modelscaling import __version__
from modelscaling.cli.main import main
from modelscaling.preset import PRESETS
from tests.shared.spec import make_spec
from tests.shared.test_cli_resource import make_document

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def valid(tmp_path: Path) -> str:
    file = tmp_path / "valid.yaml"
    file.write_text(yaml.safe_dump(make_document(spec=make_spec(replicas=2))))
    return str(file)


@pytest.fixture
def invalid(tmp_path: Path) -> str:
    """One that is valid, and one whose batch cannot be cut into three."""
    other = make_document(metadata={"name": "odd"}, spec=make_spec(replicas=3))
    file = tmp_path / "invalid.yaml"
    file.write_text(yaml.safe_dump_all([make_document(), other]))
    return str(file)


def test_validate_says_what_a_valid_run_is(valid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", valid]) == 0

    valid_line, advice = capsys.readouterr().out.splitlines()
    assert valid_line == (
        "tiny: valid; 98.6k parameters, 125 steps, mesh dp2, about 4.26Mi a process"
    )
    assert advice.startswith("tiny: UnderTrained: 64k tokens for 98.6k parameters")
    assert advice.endswith("(Hoffmann et al. 2022, arXiv:2203.15556)")


def test_validate_says_what_is_wrong_and_where(
    invalid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-f", invalid]) == 1

    captured = capsys.readouterr()
    assert captured.out.startswith("tiny: valid")
    assert captured.err.startswith(f"error: {invalid}: odd: spec.training.globalBatchSize: 8 is")


def test_validate_speaks_json(invalid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", invalid, "--json"]) == 1

    content = json.loads(capsys.readouterr().out)
    assert content["valid"] is False
    first, second = content["documents"]
    (advice,) = first.pop("advice")
    assert (advice["type"], advice["reason"]) == ("Balance", "UnderTrained")
    assert advice.keys() == {"type", "reason", "message", "source"}
    assert first == {
        "valid": True,
        "name": "tiny",
        "problems": [],
        "parameters": 98_624,
        "total_steps": 125,
        "mesh": "single",
        "plan": {
            "reason": (
                "every process holds the whole model, which talks least; a process needs about "
                "6.83Mi"
            ),
            "memory_bytes": {
                "weights": 4 * 98_624,
                "gradients": 4 * 98_624,
                "moments": 8 * 98_624,
                "gathered": 2 * 98_624,
                "activations": 8 * 64 * 2 * 3472,
                "logits": 8 * 64 * 256 * 14,
                "total": 7_165_568,
            },
            "rejected": [],
        },
        "later": [],
    }
    assert (second["name"], second["valid"], second["mesh"]) == ("odd", False, None)
    assert second["plan"] is None
    assert second["problems"][0]["field"] == "spec.training.globalBatchSize"


def test_validate_says_what_a_run_grows_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "growing.yaml"
    schedule = [{"tokens": "16k", "layers": 3}, {"tokens": "32k", "feedForwardSize": 256}]
    spec = make_spec(replicas=2, model__growth__schedule=schedule)
    file.write_text(yaml.safe_dump(make_document(spec=spec)))

    assert main(["validate", "-f", str(file)]) == 0
    _, first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "tiny: from 16k tokens on 140k parameters, mesh dp2"
    assert second == "tiny: from 32k tokens on 213k parameters, mesh dp2"


@pytest.mark.parametrize(("mode", "is_told"), [("Preserve", False), ("Stack", True)])
def test_validate_says_which_growth_is_inexact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, *, is_told: bool
) -> None:
    file = tmp_path / "growing.yaml"
    growth = {"mode": mode, "schedule": [{"tokens": "16k", "layers": 4, "feedForwardSize": 256}]}
    spec = make_spec(replicas=2, model__growth=growth)
    file.write_text(yaml.safe_dump(make_document(spec=spec)))

    assert main(["validate", "-f", str(file)]) == 0
    _, line, _ = capsys.readouterr().out.splitlines()
    told = "; inexact: layers 2 to 4: the stack is repeated as it is, so the logits change"
    assert line.partition("mesh dp2")[2] == (told if is_told else "")


def test_validate_says_of_a_paused_run_only_what_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "paused.yaml"
    file.write_text(yaml.safe_dump(make_document(spec=make_spec(replicas=0))))

    assert main(["validate", "-f", str(file)]) == 0

    assert capsys.readouterr().out.startswith(
        "tiny: valid; 98.6k parameters, 125 steps, mesh single\n"
    )


def test_validate_names_the_meshes_that_were_not_taken(
    valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["validate", "-f", valid, "--json"])

    (document,) = json.loads(capsys.readouterr().out)["documents"]
    assert [other["mesh"] for other in document["plan"]["rejected"]] == ["fsdp2", "cp2", "pp2"]
    assert all(other["reason"] for other in document["plan"]["rejected"])


def test_model_prints_the_exact_size_of_a_file(
    valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "-f", valid, "--json"]) == 0

    content = json.loads(capsys.readouterr().out)
    assert content["parameters"] == 98_624
    assert content["flops_per_token"] == {
        "PaLM": 6 * 98_624 + 12 * 2 * 64 * 64,
        "NoEmbedding": 6 * 98_624 + 12 * 2 * 64 * 64,
        "Causal": 6 * 98_624 + 6 * 2 * 64 * 64,
    }
    assert content["shape"]["hiddenSize"] == 64


@pytest.mark.parametrize("preset", PRESETS)
def test_model_knows_every_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--preset", preset, "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["parameters"] == PRESETS[preset].parameters()


def test_the_context_changes_what_a_token_costs_and_not_the_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["model", "--preset", "llama-3.1-8b", "--json"])
    long = json.loads(capsys.readouterr().out)
    main(["model", "--preset", "llama-3.1-8b", "--context", "4096", "--json"])
    short = json.loads(capsys.readouterr().out)

    assert short["parameters"] == long["parameters"] == 8_030_261_248
    assert short["shape"]["contextLength"] == 4096
    assert long["flops_per_token"]["PaLM"] - short["flops_per_token"]["PaLM"] == (
        12 * 32 * 4096 * 4096
    )


def test_model_takes_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "layers=2,hiddenSize=64,heads=4,feedForwardSize=128,contextLength=64"

    assert main(["model", "--shape", shape]) == 0

    printed = capsys.readouterr().out
    assert "98,624 (98.6k)" in printed
    assert "at a context of 64" in printed


def test_model_solves_for_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--shape", "parameters=20M", "--json"]) == 0

    content = json.loads(capsys.readouterr().out)
    assert content["parameters"] == pytest.approx(20e6, rel=0.03)
    assert content["shape"]["hiddenSize"] == 512


def test_model_prints_what_a_family_does_differently(capsys: pytest.CaptureFixture[str]) -> None:
    main(["model", "--preset", "llama-3.1-8b"])

    printed = capsys.readouterr().out
    assert "  ropeScaling.lowFreqFactor           1.0\n" in printed
    assert "slidingWindow" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--preset", "llama-9"], "--preset: spec.model.preset: 'llama-9'", id="unknown preset"
        ),
        pytest.param(
            ["--shape", "layers=2,width=3"], "'width=3' is not NAME=VALUE", id="unknown field"
        ),
        pytest.param(["--shape", "layers"], "'layers' is not NAME=VALUE", id="no value"),
        pytest.param(
            ["--shape", "layers=x,hiddenSize=64,heads=4,feedForwardSize=8"],
            "spec.model.layers: 'x' is not valid",
            id="no number",
        ),
        pytest.param(
            ["--shape", "layers=2,hiddenSize=64,heads=4,kvHeads=3,feedForwardSize=8"],
            "spec.model.kvHeads: heads=4 is not divisible by kvHeads=3",
            id="a shape that cannot be",
        ),
        pytest.param(["--shape", "layers=2"], "spec.model: model needs a size", id="no size"),
        pytest.param(
            ["--preset", "smollm2-135m", "--context", "long"],
            "spec.model.contextLength: 'long' is not valid",
            id="no context",
        ),
    ],
)
def test_model_refuses_what_is_no_model(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", *arguments]) == 2

    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", "nowhere.yaml"]) == 2

    assert (
        capsys.readouterr().err
        == "error: nowhere.yaml: cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize("command", ["train", "validate", "model", "export", "grow"])
def test_the_help_of_each_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])

    assert caught.value.code == 0
    assert f"example:\n  modelscaling {command} " in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"modelscaling {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["model"], ["train"], ["train", "-f", "x", "--steps", "0"]]
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_as_a_plugin_it_names_itself_as_kubectl_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/kubectl-modelscaling"])

    with pytest.raises(SystemExit):
        main()

    assert capsys.readouterr().err.startswith("usage: kubectl modelscaling ")
