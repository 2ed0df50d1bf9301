from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from modelscaling.api.conditions import Reason
from modelscaling.api.status import RunState
from modelscaling.protocol import StopMode
from modelscaling_operator.agents import Agents
from modelscaling_operator.health import Vitals
from modelscaling_operator.kube import ConflictError, Kube, UnavailableError
from modelscaling_operator.loop import RunLoop, Surroundings
from modelscaling_operator.metrics import Metrics
from tests.live_run import condition_of
from tests.operator.fake_api import FakeApi, status_answer
from tests.operator.runs import CHECKPOINT, make_world, state
from tests.operator.world import BEGIN, POLICY, RUN
from tests.operator.world_loop import WorldLoop
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelscaling_operator.observation import Pod

_RUN_PATH = "/apis/modelscaling.dev/v1alpha1/namespaces/research/modelscalings/tiny"
_CORE = "/api/v1/namespaces/research"


class Bench:
    """One loop on a fake API server."""

    def __init__(self, api: FakeApi, kube: Kube, agents: Agents) -> None:
        self.api = api
        self.metrics = Metrics()
        self.pods: tuple[Pod, ...] = ()
        self.set_run(make_spec(replicas=2))
        self.loop = RunLoop(
            RUN,
            Surroundings(
                kube=kube,
                agents=agents,
                metrics=self.metrics,
                vitals=Vitals(lambda: 0.0),
                policy=POLICY,
                pull_policy="Never",
                now=lambda: BEGIN,
            ),
            body=lambda: api.objects.get(_RUN_PATH),
            pods=lambda: self.pods,
        )

    def set_run(self, spec: Any, **metadata: Any) -> None:
        self.api.objects[_RUN_PATH] = {
            "metadata": {
                "namespace": RUN.namespace,
                "name": RUN.name,
                "uid": RUN.uid,
                "generation": 1,
                "resourceVersion": "1",
                **metadata,
            },
            "spec": spec,
        }

    @property
    def writes(self) -> list[str]:
        return [f"{verb} {path}" for verb, path, _ in self.api.requests if verb != "GET"]

    def condition(self, kind: str) -> dict[str, Any]:
        return condition_of(self.api.objects[_RUN_PATH].get("status", {}), kind)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async for api in FakeApi().serve():
        kube, agents = Kube(api.configuration), Agents(timeout_s=0.1)
        yield Bench(api, kube, agents)
        await kube.close()
        await agents.close()


async def test_the_status_is_written_before_anything_is_done(bench: Bench) -> None:
    await bench.loop.look()

    assert bench.writes[0] == f"PATCH {_RUN_PATH}/status"
    assert f"POST {_CORE}/pods" in bench.writes
    first_pod = bench.writes.index(f"POST {_CORE}/pods")
    for dependency in ("secrets/tiny-key", "configmaps/tiny", "services/tiny"):
        assert bench.writes.index(f"PATCH {_CORE}/{dependency}") < first_pod
    assert {f"{_CORE}/pods/tiny-0", f"{_CORE}/pods/tiny-1"} <= set(bench.api.objects)


async def test_pods_that_the_watch_has_not_told_of_are_not_created_again(bench: Bench) -> None:
    await bench.loop.look()
    # As one does whose index is free again before the watch tells of its replacement.
    del bench.api.objects[f"{_CORE}/pods/tiny-0"]
    bench.api.requests.clear()

    await bench.loop.look()

    assert f"POST {_CORE}/pods" not in bench.writes


async def test_what_is_refused_after_the_status_was_written_is_soon_tried_again(
    bench: Bench,
) -> None:
    bench.api.busy_path = f"{_CORE}/pods"

    for edit in (1, 2, 3):
        bench.set_run(make_spec(replicas=edit), generation=edit, resourceVersion=str(100 * edit))
        assert await bench.loop._look_safely() == 0.5

    assert await bench.loop._look_safely() == 1.0


async def test_an_equal_status_is_not_written_again(bench: Bench) -> None:
    await bench.loop.look()
    await bench.loop.look()
    bench.api.requests.clear()

    await bench.loop.look()

    assert f"PATCH {_RUN_PATH}/status" not in bench.writes


async def test_a_status_that_cannot_be_written_lets_nothing_happen(bench: Bench) -> None:
    bench.api.answers = [status_answer(404, "no status yet")]
    assert await bench.loop.look() is None

    await bench.loop._read_status()
    bench.api.requests.clear()
    bench.api.answers = [status_answer(503, "etcd is away")]
    with pytest.raises(UnavailableError):
        await bench.loop.look()

    assert bench.writes == [f"PATCH {_RUN_PATH}/status"]


async def test_an_object_that_changed_in_between_is_looked_at_anew(bench: Bench) -> None:
    await bench.loop._read_status()
    stale = bench.api.objects[_RUN_PATH]
    bench.loop._body = lambda: stale
    bench.set_run(make_spec(replicas=1), generation=2, resourceVersion="50")

    with pytest.raises(ConflictError):
        await bench.loop.look()

    assert bench.writes == [f"PATCH {_RUN_PATH}/status"]


async def test_an_invalid_edit_of_a_run_that_waits_for_another_is_told(bench: Bench) -> None:
    waiting = {"model__initFrom": {"modelScaling": {"name": "small"}}, "checkpoint": CHECKPOINT}
    bench.set_run(make_spec(replicas=2, **waiting))
    await bench.loop.look()
    before = bench.condition("Running")["message"]
    # A batch of 8 samples is not divided by 3.
    bench.api.objects[_RUN_PATH]["spec"] = make_spec(replicas=3, **waiting)
    bench.api.objects[_RUN_PATH]["metadata"]["generation"] = 2

    await bench.loop.look()

    assert "There is no ModelScaling small" in before
    assert bench.condition("Accepted")["status"] == "False"
    assert bench.condition("Running")["message"] == before


async def test_the_key_of_a_run_is_made_once(bench: Bench) -> None:
    await bench.loop.look()
    key = bench.api.objects[f"{_CORE}/secrets/tiny-key"]["data"]

    await bench.loop.look()

    assert bench.api.objects[f"{_CORE}/secrets/tiny-key"]["data"] == key
    assert bench.writes.count(f"PATCH {_CORE}/secrets/tiny-key") == 1


async def test_an_object_of_somebody_else_is_left_alone_and_told(bench: Bench) -> None:
    theirs = {"metadata": {"namespace": RUN.namespace, "name": "tiny"}, "spec": {"theirs": True}}
    bench.api.objects[f"{_CORE}/services/tiny"] = theirs

    await bench.loop.look()
    await bench.loop.look()

    assert bench.api.objects[f"{_CORE}/services/tiny"] == theirs
    assert bench.condition("Running")["reason"] == Reason.NAME_TAKEN
    assert "services tiny exists" in bench.condition("Running")["message"]
    assert f"POST {_CORE}/pods" not in bench.writes


async def test_a_pod_of_somebody_else_is_left_alone_and_told_and_the_others_are_created(
    bench: Bench,
) -> None:
    theirs = {"metadata": {"namespace": RUN.namespace, "name": "tiny-0"}, "spec": {}}
    bench.api.objects[f"{_CORE}/pods/tiny-0"] = theirs

    await bench.loop.look()
    await bench.loop.look()

    assert bench.api.objects[f"{_CORE}/pods/tiny-0"] == theirs
    assert f"{_CORE}/pods/tiny-1" in bench.api.objects
    assert bench.condition("Running")["reason"] == Reason.NAME_TAKEN
    assert "pods tiny-0 exists" in bench.condition("Running")["message"]


async def test_an_error_is_counted_and_tried_again_after_what_the_server_asks(
    bench: Bench,
) -> None:
    answer = status_answer(429, "slow down")
    answer.headers["Retry-After"] = "9"
    bench.api.answers = [answer]

    assert await bench.loop._look_safely() == 9
    assert bench.metrics.registry.get_sample_value("modelscaling_reconcile_errors_total") == 1


async def test_a_loop_survives_what_nobody_foresaw(bench: Bench) -> None:
    bench.loop._pods = lambda: [object()]  # type: ignore[list-item]

    assert await bench.loop._look_safely() == 0.5
    assert await bench.loop._look_safely() == 1.0


async def test_a_loop_ends_with_its_object(bench: Bench) -> None:
    bench.set_run(make_spec(), deletionTimestamp="2026-01-01T00:00:00Z")

    await bench.loop.run()

    assert bench.writes == []


async def test_the_agents_of_a_run_that_is_deleted_are_told_to_end_before_their_pods_are() -> None:
    world = make_world()
    async with WorldLoop(world=world) as operator:
        while state(world) is not RunState.RUNNING:
            await operator.tick()
        world.cut_off(1)
        world.is_being_deleted = True

        assert operator.loop is not None
        assert await operator.loop.look() is None

    assert world.agent(0).stop_mode is StopMode.SUSPEND
    assert world.agent(1).stop_mode is None


async def test_a_change_is_counted_in_the_metrics_once_even_in_a_full_ledger() -> None:
    world = make_world(maxRestarts=1000)
    async with WorldLoop(world=world) as operator:
        for _ in range(50):
            await operator.tick()
            if len(world.agents) == 2 and state(world) is RunState.RUNNING:
                world.crash_worker(1)

        count = operator.metrics.registry.get_sample_value(
            "modelscaling_rescale_downtime_seconds_count", {"cause": "WorkerReplaced"}
        )

    assert world.status.group is not None
    assert len(world.status.rescales) == 20
    assert count == world.status.group.recorded_attempt - 1


async def test_a_run_of_the_same_name_is_not_taken_for_this_one(bench: Bench) -> None:
    seen = bench.api.objects[_RUN_PATH]
    bench.loop._body = lambda: seen
    bench.set_run(make_spec(), uid="another")

    await bench.loop.run()

    assert bench.writes == []
