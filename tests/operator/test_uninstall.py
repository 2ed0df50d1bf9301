from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes import client

from modelscaling_operator.uninstall import ClusterRuns, delete_runs

A, B, C = ("research", "a"), ("research", "b"), ("production", "c")


@dataclass
class FakeCluster:
    """Runs that are gone `seconds_to_go` after they were asked to, on a clock of its own."""

    present: list[tuple[str, str]]
    seconds_to_go: float = 0
    time: float = 0
    deleted: dict[tuple[str, str], float] = field(default_factory=dict)
    late: dict[float, tuple[str, str]] = field(default_factory=dict)

    def all(self) -> list[tuple[str, str]]:
        arrived = [run for at, run in self.late.items() if at <= self.time]
        return [run for run in [*self.present, *arrived] if not self._is_gone(run)]

    def _is_gone(self, run: tuple[str, str]) -> bool:
        return run in self.deleted and self.time >= self.deleted[run] + self.seconds_to_go

    def delete(self, namespace: str, name: str) -> None:
        assert (namespace, name) not in self.deleted, "deleted twice"
        self.deleted[namespace, name] = self.time

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds


def _delete_runs(cluster: FakeCluster, *, timeout_s: float) -> list[tuple[str, str]]:
    return delete_runs(cluster, timeout_s=timeout_s, now=cluster.now, pause=cluster.pause)


def test_every_run_is_deleted_once_and_waited_for() -> None:
    cluster = FakeCluster(present=[A, B, C], seconds_to_go=5)

    left = _delete_runs(cluster, timeout_s=60)

    assert left == []
    assert cluster.deleted.keys() == {A, B, C}
    assert 5 <= cluster.time < 7


def test_nothing_is_waited_for_where_there_is_no_run() -> None:
    cluster = FakeCluster(present=[])

    assert _delete_runs(cluster, timeout_s=60) == []
    assert cluster.time == 0


def test_runs_that_nobody_lets_go_of_are_named_at_the_timeout() -> None:
    cluster = FakeCluster(present=[A, C], seconds_to_go=1000)

    assert _delete_runs(cluster, timeout_s=10) == [A, C]
    assert 10 <= cluster.time < 12


def test_a_run_that_is_created_meanwhile_is_deleted_too() -> None:
    cluster = FakeCluster(present=[A], seconds_to_go=5, late={3: B})

    assert _delete_runs(cluster, timeout_s=60) == []
    assert cluster.deleted.keys() == {A, B}


class FakeApi:
    """The part of the Kubernetes client that is used, with an error for what is in `missing`."""

    def __init__(self, *, status: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._status = status

    def _answer(self, *call: object, _request_timeout: float) -> dict[str, Any]:
        assert _request_timeout > 0
        self.calls.append(call)
        if self._status:
            raise client.ApiException(status=self._status)
        namespace = call[2] if len(call) > 3 else "anywhere"
        return {"items": [{"metadata": {"namespace": namespace, "name": "a"}}]}

    list_cluster_custom_object = _answer
    list_namespaced_custom_object = _answer
    delete_namespaced_custom_object = _answer


GVR = ("modelscaling.dev", "v1alpha1")


def test_an_operator_of_the_whole_cluster_asks_for_all_runs_at_once() -> None:
    api = FakeApi()

    assert ClusterRuns(api, []).all() == [("anywhere", "a")]
    assert api.calls == [(*GVR, "modelscalings")]


def test_an_operator_of_some_namespaces_asks_in_each_of_them() -> None:
    api = FakeApi()

    assert ClusterRuns(api, ["x", "y"]).all() == [("x", "a"), ("y", "a")]
    assert api.calls == [(*GVR, "x", "modelscalings"), (*GVR, "y", "modelscalings")]


def test_without_a_definition_there_are_no_runs() -> None:
    assert ClusterRuns(FakeApi(status=404), []).all() == []


def test_a_run_that_is_gone_already_needs_no_deletion() -> None:
    api = FakeApi(status=404)

    ClusterRuns(api, []).delete("x", "a")

    assert api.calls == [(*GVR, "x", "modelscalings", "a")]


@pytest.mark.parametrize("status", [403, 500])
def test_an_answer_that_is_an_error_is_not_taken_for_there_are_none(status: int) -> None:
    runs = ClusterRuns(FakeApi(status=status), ["x"])

    with pytest.raises(client.ApiException):
        runs.all()
    with pytest.raises(client.ApiException):
        runs.delete("x", "a")
