from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from devcluster import image
from devcluster.errors import ClusterError
from devcluster.image import Python, archive, closed_directories


def make_python(base: Path) -> Python:
    """A home directory that is closed, with an environment and an interpreter in it."""
    home = base / "home"
    for path in ("repository/.venv/bin", "python/3.11/bin", "python/3.11/lib"):
        (home / path).mkdir(parents=True)
    (home / "python/3.11/bin/python3.11").touch()
    (home / "python/3.11/bin").chmod(0o711)
    home.chmod(0o700)
    return Python(
        environment=home / "repository/.venv",
        interpreter=home / "python/3.11/bin/python3.11",
        library=home / "python/3.11/lib",
        packages=home / "repository/.venv/bin",
    )


def files_of(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    return files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]


def layer_of(content: bytes) -> dict[str, tarfile.TarInfo]:
    files = files_of(content)
    manifest = json.loads(blob(files, json.loads(files["index.json"])["manifests"][0]))
    with tarfile.open(fileobj=io.BytesIO(blob(files, manifest["layers"][0]))) as tar:
        return {member.name: member for member in tar}


def test_the_same_paths_yield_the_same_bytes(tmp_path: Path) -> None:
    python = make_python(tmp_path)

    assert archive(python) == archive(python)


def test_closed_directories_on_the_way_are_opened_and_links_are_not_replaced(
    tmp_path: Path,
) -> None:
    python = make_python(tmp_path)
    (tmp_path / "home/python/latest").symlink_to("3.11")
    way = tmp_path / "home/python/latest/bin/python3.11"

    closed = closed_directories([way])

    assert closed[-2:] == [tmp_path / "home", tmp_path / "home/python/3.11/bin"]
    assert python.interpreter == way.resolve()


def test_the_layer_opens_directories_and_links_the_corpus(tmp_path: Path) -> None:
    python = make_python(tmp_path)

    layer = layer_of(archive(python))

    home = layer[str(tmp_path / "home").lstrip("/")]
    assert (home.isdir(), home.mode) == (True, 0o755)
    corpus = layer["opt/modelscaling/corpus"]
    assert (corpus.issym(), corpus.linkname) == (True, str(python.library))
    assert list(layer).index("opt/modelscaling") < list(layer).index("opt/modelscaling/corpus")


def test_operator_trainer_and_sandbox_run_as_a_user_that_is_not_root(tmp_path: Path) -> None:
    files = files_of(archive(make_python(tmp_path)))
    index = json.loads(files["index.json"])
    configs = {}
    for descriptor in index["manifests"]:
        manifest = json.loads(blob(files, descriptor))
        name = descriptor["annotations"]["io.containerd.image.name"]
        configs[name] = json.loads(blob(files, manifest["config"]))["config"]

    assert set(configs) >= {
        "localhost/modelscaling-operator:dev",
        "localhost/modelscaling-trainer:dev",
    }
    for config in configs.values():
        assert config["User"] == "65532:65532"
        assert config["Env"][0].startswith(f"PATH={tmp_path}/home/repository/.venv/bin:")


@pytest.mark.parametrize(
    ("mount_point", "mode", "problem"),
    [
        pytest.param("/home", 0o644, "mounted at /home", id="another file system"),
        pytest.param("/", 0o600, "chmod -R o\\+rX", id="unreadable"),
    ],
)
def test_what_pods_could_not_see_is_named(
    monkeypatch: pytest.MonkeyPatch, mount_point: str, mode: int, problem: str
) -> None:
    python = Python(
        environment=Path("/srv/.venv"),
        interpreter=Path("/srv/python"),
        library=Path("/srv/lib"),
        packages=Path("/srv/packages"),
    )
    monkeypatch.setattr(image, "mount_point_of", lambda _: Path(mount_point))
    monkeypatch.setattr(Path, "stat", lambda _: type("Status", (), {"st_mode": mode}))

    with pytest.raises(ClusterError, match=problem):
        image.check(python)


def test_a_repository_in_tmp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "mount_point_of", lambda _: Path("/"))
    python = make_python(tmp_path)
    inside = Python(
        environment=Path("/tmp/x/.venv"),
        interpreter=python.interpreter,
        library=python.library,
        packages=python.packages,
    )

    with pytest.raises(ClusterError, match="a /tmp of their own"):
        image.check(inside)
