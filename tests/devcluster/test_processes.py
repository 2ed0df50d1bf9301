from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from devcluster import processes
from devcluster.errors import ClusterError
from devcluster.processes import Program, parse

HOME = Path("/srv/a|b/.cluster")


def environment(mark: str) -> bytes:
    return f"PATH=/bin\0MODELSCALING_DEVCLUSTER={mark}\0HOME=/\0".encode()


def make_program(tmp_path: Path, *arguments: str, build: str = "b") -> Program:
    return Program(
        name="etcd",
        binaries=tmp_path / "bin",
        build=build,
        arguments=arguments,
        inputs=(tmp_path / "input",),
    )


def test_a_process_without_a_mark_is_nobody_of_ours() -> None:
    assert parse(7, 1, b"PATH=/bin\0HOME=/\0", b"etcd\0") is None


def test_a_mark_that_is_cut_off_is_no_mark() -> None:
    assert parse(7, 1, environment("/srv"), b"etcd\0") is None


@pytest.mark.parametrize(
    ("argv0", "is_main"),
    [
        pytest.param(f"{HOME}/bin/containerd", True, id="the program itself"),
        pytest.param(f"{HOME}/bin/containerd-shim-runc-v2", False, id="a child of it"),
        pytest.param("setsid", False, id="not yet executed"),
        pytest.param("", False, id="a zombie"),
    ],
)
def test_a_child_with_the_inherited_mark_is_not_the_program(argv0: str, *, is_main: bool) -> None:
    mark = f"{HOME}|containerd@node-1|f00"

    process = parse(7, 99, environment(mark), f"{argv0}\0--config\0x\0".encode())

    assert process is not None
    assert (process.home, process.name, process.fingerprint) == (HOME, "containerd@node-1", "f00")
    assert process.is_main is is_main


def test_the_fingerprint_changes_with_arguments_files_and_build(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("1")
    first = make_program(tmp_path, "--a").fingerprint()
    same = make_program(tmp_path, "--a").fingerprint()
    others = [
        make_program(tmp_path, "--b").fingerprint(),
        make_program(tmp_path, "--a", build="c").fingerprint(),
    ]
    (tmp_path / "input").write_text("2")
    others.append(make_program(tmp_path, "--a").fingerprint())

    assert first == same
    assert len({first, *others}) == 4


@pytest.mark.process
def test_a_started_program_is_found_and_killed_and_knows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    program = make_sleeper(tmp_path, "infinity")

    process = processes.start(program, home=tmp_path, log=tmp_path / "log")
    found = processes.running(tmp_path)["sleep"]
    its_environment = Path(f"/proc/{process.pid}/environ").read_text()
    its_session = os.getsid(process.pid)
    processes.kill([process])

    assert found == process
    assert "hunter2" not in its_environment
    assert its_session != os.getsid(0)
    assert processes.running(tmp_path) == {}


@pytest.mark.process
def test_a_program_that_ends_at_once_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_START_TIMEOUT_S", 2.0)
    program = replace(make_sleeper(tmp_path, "x"), is_ready=lambda: False)

    def start_and_wait() -> None:
        processes.start(program, home=tmp_path, log=tmp_path / "log")
        processes.await_ready(program, home=tmp_path, log=tmp_path / "log", timeout_s=20)

    # Which of the two notices is chance: it may be seen before it ends.
    with pytest.raises(ClusterError, match="invalid time interval"):
        start_and_wait()


@pytest.mark.process
def test_whoever_took_over_a_pid_is_not_killed(tmp_path: Path) -> None:
    process = processes.start(
        make_sleeper(tmp_path, "infinity"), home=tmp_path, log=tmp_path / "log"
    )
    with subprocess.Popen(["sleep", "infinity"]) as bystander:
        mistaken = processes.Process(
            pid=bystander.pid,
            started=process.started,
            home=tmp_path,
            name="sleep",
            fingerprint="",
            is_main=True,
        )
        processes.kill([mistaken, process])

        assert bystander.poll() is None
        bystander.kill()


def make_sleeper(tmp_path: Path, interval: str) -> Program:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sleep").symlink_to("/bin/sleep")
    return Program(name="sleep", binaries=tmp_path / "bin", arguments=(interval,))
