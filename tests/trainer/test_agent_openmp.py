from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.agent import openmp

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("cores", "processes", "threads"),
    [
        pytest.param(8, 1, "8", id="one process takes all cores"),
        pytest.param(8, 3, "2", id="the rest stays unused"),
        pytest.param(2, 4, "1", id="more processes than cores"),
    ],
)
def test_threads_times_processes_is_at_most_the_number_of_cores(
    cores: int, processes: int, threads: str
) -> None:
    added = openmp.openmp_environment({}, cores=cores, processes=processes, shares_machine=False)

    assert added["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("processes", "shares_machine", "sleeps"),
    [
        pytest.param(1, False, False, id="alone on a laptop"),
        pytest.param(2, False, True, id="two processes on a laptop"),
        pytest.param(1, True, True, id="in a pod"),
    ],
)
def test_threads_sleep_while_they_wait_where_others_need_the_cores(
    processes: int, *, shares_machine: bool, sleeps: bool
) -> None:
    added = openmp.openmp_environment(
        {}, cores=4, processes=processes, shares_machine=shares_machine
    )

    assert (added.get("OMP_WAIT_POLICY") == "passive") is sleeps


def test_what_the_user_has_set_stays() -> None:
    given = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}

    assert openmp.openmp_environment(given, cores=8, processes=2, shares_machine=True) == {}


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        pytest.param("150000 100000", [1.5], id="one and a half cores"),
        pytest.param("max 100000", [], id="no limit"),
        pytest.param("-1 100000", [], id="no limit, version 1"),
        pytest.param("", [], id="no file"),
    ],
)
def test_a_cpu_limit_is_quota_by_period(text: str, cores: list[float]) -> None:
    assert list(openmp.parse_cpu_max(text)) == cores


def test_limits_of_the_cgroup_and_of_those_above_it_count(tmp_path: Path) -> None:
    pod = tmp_path / "kubepods/pod1"
    (pod / "container").mkdir(parents=True)
    (pod / "cpu.max").write_text("200000 100000\n")
    (pod / "container/cpu.max").write_text("max 100000\n")

    limits = openmp.cgroup_limits(tmp_path, "0::/kubepods/pod1/container\n")

    assert list(limits) == [2.0]


def test_inside_a_container_the_limit_is_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")

    assert list(openmp.cgroup_limits(tmp_path, "0::/../../elsewhere\n")) == [1.0]


def test_limits_of_version_1_count(tmp_path: Path) -> None:
    (tmp_path / "cpu/pod1").mkdir(parents=True)
    (tmp_path / "cpu/pod1/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/pod1/cpu.cfs_period_us").write_text("100000\n")

    assert list(openmp.cgroup_limits(tmp_path, "4:memory:/x\n1:cpu,cpuacct:/pod1\n")) == [0.5]
