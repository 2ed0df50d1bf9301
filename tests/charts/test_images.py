from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "images/install.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def _stage(name: str) -> str:
    """The instructions of a stage of the Dockerfile."""
    stages = re.split(r"(?m)^FROM ", DOCKERFILE)
    (found,) = (stage for stage in stages if re.match(rf"\S+ AS {name}\n", stage))
    return found


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_an_image_is_what_the_install_script_makes(target: str) -> None:
    commands = re.findall(r"images/install\.sh (.*)", _stage(f"build-{target}"))

    assert len(commands) == 1
    assert commands[0].split()[-1] == target
    assert f"COPY --from=build-{target} /opt/modelscaling /opt/modelscaling" in _stage(target)


@pytest.mark.parametrize("stage", ["runtime", "operator", "trainer"])
def test_no_image_ends_as_root(stage: str) -> None:
    users = re.findall(r"(?m)^USER (\S+)$", _stage(stage))

    assert users[-1:] in ([], ["65532:65532"])
    assert "USER 65532:65532" in _stage("runtime")


def test_the_trainer_has_the_text_that_the_examples_train_on() -> None:
    corpus = "/opt/modelscaling/corpus"

    assert f"--corpus {corpus} trainer" in _stage("build-trainer")
    for example in (ROOT / "examples").glob("*.yaml"):
        assert f"path: {corpus}/" in example.read_text()


def test_the_build_context_holds_what_the_install_needs_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    assert "*" in ignored
    assert kept == {
        *("images", "modelscaling", "operator", "trainer"),
        *("pyproject.toml", "uv.lock", "README.md", "LICENSE"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "nothing to install", id="nothing"),
        pytest.param(["operater"], "unknown argument 'operater'", id="a misspelt target"),
        pytest.param(["operator", "--into"], "--into needs a path", id="no path"),
    ],
)
@pytest.mark.process
def test_the_install_script_says_what_is_wrong(arguments: list[str], message: str) -> None:
    refused = subprocess.run(
        [INSTALL, *arguments], capture_output=True, text=True, timeout=10, check=False
    )

    assert refused.returncode == 2
    assert message in refused.stderr


@pytest.fixture(scope="module")
def operator_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator's image holds below /opt/modelscaling."""
    folder = tmp_path_factory.mktemp("operator")
    subprocess.run(
        [INSTALL, "--into", folder / "venv", "--corpus", folder / "corpus", "operator"],
        check=True,
        timeout=300,
    )
    return folder


def _installed(environment: Path) -> set[str]:
    packages = environment / "venv" / "lib"
    return {path.name for path in packages.glob("python*/site-packages/*")}


@pytest.mark.process
@pytest.mark.timeout(320)
def test_the_operator_image_has_the_operator_and_no_torch(operator_environment: Path) -> None:
    installed = _installed(operator_environment)

    assert {"kopf", "kubernetes", "modelscaling", "modelscaling_operator"} <= installed
    assert not {"torch", "numpy", "triton", "pytest"} & installed


@pytest.mark.process
@pytest.mark.timeout(320)
def test_an_image_has_the_code_of_this_tree_and_not_of_an_earlier_build(
    operator_environment: Path,
) -> None:
    (packages,) = (operator_environment / "venv/lib").glob("python*/site-packages")

    for folder in ("modelscaling", "operator/modelscaling_operator"):
        source = ROOT / folder
        for file in source.rglob("*.py"):
            installed = packages / file.relative_to(source.parent)
            assert installed.read_text() == file.read_text()


@pytest.mark.process
@pytest.mark.timeout(320)
def test_the_operator_starts_from_its_image_without_the_source_tree(
    operator_environment: Path, tmp_path: Path
) -> None:
    script = operator_environment / "venv/bin/modelscaling-operator"

    help_text = subprocess.check_output(
        [script, "--help"], cwd=tmp_path, text=True, timeout=60, env={"PATH": os.environ["PATH"]}
    )

    assert "modelscaling-operator" in help_text


@pytest.mark.process
@pytest.mark.timeout(320)
def test_the_corpus_is_the_source_of_the_standard_library(operator_environment: Path) -> None:
    corpus = operator_environment / "corpus"

    assert (corpus / "argparse.py").is_file()
    assert corpus.resolve() == Path(sysconfig.get_path("stdlib")).resolve()
