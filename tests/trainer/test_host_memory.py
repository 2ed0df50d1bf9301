from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.host_memory import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def write_limit(directory: Path, limit: str, *, used: int, inactive: int = 0) -> None:
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon {used}\ninactive_file {inactive}\n")


def write_machine(directory: Path, available_kib: int) -> Path:
    path = directory / "meminfo"
    path.write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available_kib} kB\n")
    return path


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "free"),
    [
        pytest.param(100 * MIB, 30 * MIB, 0, 70 * MIB, id="the pod's limit is nearer"),
        pytest.param(100 * MIB, 30 * MIB, 9 * MIB, 79 * MIB, id="old files make room"),
        pytest.param(900 * MIB, 30 * MIB, 0, 80 * MIB, id="the machine has less"),
        pytest.param("max", 30 * MIB, 0, 80 * MIB, id="the pod has no limit"),
        pytest.param(100 * MIB, 120 * MIB, 0, 1, id="above the limit"),
    ],
)
def test_what_is_free_is_what_the_pod_and_the_machine_both_have(
    tmp_path: Path, limit: int | str, used: int, inactive: int, free: int
) -> None:
    write_limit(tmp_path, str(limit), used=used, inactive=inactive)

    assert free_bytes(tmp_path, write_machine(tmp_path, 80 * 1024)) == free


def test_a_machine_without_control_groups_is_asked_alone(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "none", write_machine(tmp_path, 5)) == 5 * 1024


def test_nothing_is_known_of_another_system(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("Mem: 5\n")

    assert free_bytes(tmp_path / "none", tmp_path / "none") is None
    assert free_bytes(tmp_path / "none", tmp_path / "meminfo") is None
