"""Random worlds: whatever is edited and whatever fails, the run becomes what is wished.

What must hold at every moment is checked by the world itself (the group's number only grows, one
group trains at a time, no index has two pods) and after every step here: as long as nothing was
lost, no step is done twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState
from modelscaling_operator.wish import Rejection, Wish
from tests.examples import examples
from tests.operator.runs import CHECKPOINT, condition, make_world, state
from tests.operator.world import RUN, World

if TYPE_CHECKING:
    from modelscaling_operator.observation import Pod

_ENDLESS = 10**6

_SHARDED = {"strategy": "Custom", "dataReplicate": 1}
_REPLICATED = {"strategy": "Custom"}
_PIPELINED = {"strategy": "Custom", "pipeline": 2}
_EDITS: list[dict[str, Any]] = [
    {"replicas": 1},
    {"replicas": 2},
    {"replicas": 4},
    {"replicas": 1, "parallelism": _SHARDED},
    {"replicas": 2, "parallelism": _SHARDED},
    {"replicas": 4, "parallelism": _SHARDED},
    {"replicas": 4, "parallelism": _PIPELINED},
    {"parallelism": _REPLICATED},
    {"training__learningRate": "1e-4"},
    {"training__learningRate": "3e-4"},
    {"elastic": {}},
    {"elastic": {"minReplicas": 1}},
    {"elastic": {"minReplicas": 1, "patienceSeconds": 5, "spares": 1}},
    {"elastic": {"spares": 2}},
    {"replicas": 0},
    {"replicas": 3},
    {"suspend": True},
    {"suspend": False},
    {"template": {"spec": {"containers": [{"name": "trainer", "image": "trainer:2"}]}}},
    {"template": {"spec": {"containers": [{"name": "trainer", "image": "trainer:3"}]}}},
    {"template": None},
    {"checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "other"}}}},
    {"checkpoint": CHECKPOINT},
    {"processesPerReplica": 2},
    {"processesPerReplica": 1},
]
_INDEXES = st.integers(0, 5)


class RandomWorld(RuleBasedStateMachine):
    """One run that is edited while its cluster fails."""

    def __init__(self) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {
            "replicas": 2,
            "checkpoint": CHECKPOINT,
            "maxRestarts": 10000,
            "training__tokens": "512M",
        }
        self.world: World = make_world(**self.spec)
        self.is_harmful = False
        """Whether pods may be lost, rather than leave as they are told."""

    @initialize(
        mesh=st.sampled_from([_SHARDED, _REPLICATED]),
        replicas=st.sampled_from([2, 4]),
        is_harmful=st.booleans(),
    )
    def a_run_trains(self, mesh: dict[str, Any], replicas: int, is_harmful: bool) -> None:  # noqa: FBT001
        self.spec.update(parallelism=mesh, replicas=replicas)
        self.world = make_world(**self.spec)
        self.world.group.total_steps = _ENDLESS
        self.is_harmful = is_harmful
        for _ in range(8):
            self.world.tick()

    @rule(change=st.sampled_from(_EDITS), ticks=st.integers(0, 6))
    def the_spec_is_edited(self, change: dict[str, Any], ticks: int) -> None:
        self._edit(change)
        self._pass(ticks)

    @rule(ticks=st.integers(1, 10), room=st.sampled_from([2, 3, 5, None]))
    def the_room_changes(self, ticks: int, room: int | None) -> None:
        self.world.room = room
        self._pass(ticks)

    @rule(index=_INDEXES, ticks=st.integers(0, 6))
    def a_pod_is_drained(self, index: int, ticks: int) -> None:
        if RUN.pod_name(index) in self.world.pods:
            self.world.drain(index)
        self._pass(ticks)

    @rule(index=_INDEXES, ticks=st.integers(0, 3))
    def a_worker_dies(self, index: int, ticks: int) -> None:
        if self._has_agent(index) and self.world.agent(index).is_in_group:
            self.world.crash_worker(index)
        self._pass(ticks)

    @rule(
        code=st.sampled_from([ExitCode.CRASHED, ExitCode.CONFIGURATION]),
        only_index=_INDEXES | st.none(),
        ticks=st.integers(0, 6),
    )
    def new_pods_fail(self, code: ExitCode, only_index: int | None, ticks: int) -> None:
        for pod in self.world.observe().outsiders:
            if only_index in {pod.index, None} and self._is_beside_a_group_that_goes_on(pod):
                self.world.end(pod, code)
        self._pass(ticks)

    @precondition(lambda self: self.is_harmful)
    @rule(
        index=_INDEXES,
        how=st.sampled_from(["crashes", "vanishes", "is lost", "is severed", "gives up"]),
        ticks=st.integers(0, 6),
    )
    def a_pod_is_lost(self, index: int, how: str, ticks: int) -> None:
        match how:
            case "crashes" if self._has_agent(index):
                self.world.crash(index)
            case "vanishes" if RUN.pod_name(index) in self.world.pods:
                self.world.vanish(index)
            case "is lost" if self._has_agent(index):
                self.world.lose_node(index)
            case "is severed" if self._has_agent(index) and self._has_agent(0) and index:
                self.world.sever(0, index)
            case "gives up":
                self.world.give_up()
        self._pass(ticks)

    @rule(index=_INDEXES, change=st.sampled_from(_EDITS))
    def a_message_is_lost(self, index: int, change: dict[str, Any]) -> None:
        if self._has_agent(index):
            self.world.deaf.add(self.world.pods[RUN.pod_name(index)].uid)
        self._edit(change)

    @rule(index=_INDEXES, change=st.sampled_from(_EDITS), ticks=st.integers(0, 8))
    def the_operator_does_not_hear_a_pod_for_a_while(
        self, index: int, change: dict[str, Any], ticks: int
    ) -> None:
        if not self._has_agent(index) or not self.world.answers(index):
            return
        uid = self.world.pods[RUN.pod_name(index)].uid
        self.world.cut_off(index)
        self._edit(change)
        self._pass(ticks)
        self.world.silent.pop(uid)

    @rule(change=st.sampled_from(_EDITS), writes=st.booleans(), actions=st.integers(0, 2))
    def the_operator_dies(self, change: dict[str, Any], writes: bool, actions: int) -> None:  # noqa: FBT001
        self.spec.update(change)
        self.world.edit(**self.spec)
        self.world.tick(write=writes, actions=actions)

    @invariant()
    def no_step_is_done_twice_unless_something_was_lost(self) -> None:
        if not self.is_harmful:
            assert self.world.group.losses == 0

    def teardown(self) -> None:
        self.world.room = None
        self._wait_long()
        if self._is_to_train():
            self._check_that_it_is_as_wished()
        self._edit({"replicas": 4, "parallelism": {"strategy": "Auto"}, "suspend": False})
        self._wait_long()
        self._check_that_it_is_as_wished()

    def _edit(self, change: dict[str, Any]) -> None:
        self.spec.update(change)
        self.world.edit(**self.spec)
        self.world.tick()

    def _pass(self, ticks: int) -> None:
        for _ in range(ticks):
            self.world.tick()

    def _wait_long(self) -> None:
        """Let pauses, patience and what Kubernetes does about lost nodes come to their ends."""
        for _ in range(50):
            self.world.tick(seconds=5)

    def _has_agent(self, index: int) -> bool:
        pod = self.world.pods.get(RUN.pod_name(index))
        return pod is not None and pod.uid in self.world.agents

    def _is_beside_a_group_that_goes_on(self, pod: Pod) -> bool:
        group, agent = self.world.status.group, self.world.agents.get(pod.uid)
        is_new = agent is not None and agent.generation == 0
        return is_new and group is not None and bool(group.pods) and not group.broken

    def _is_to_train(self) -> bool:
        if isinstance(self.world.wish, Rejection):
            return False
        is_paused = self.spec.get("suspend") or not self.spec["replicas"]
        if is_paused:
            assert self.world.pods == {}
        return not is_paused

    def _check_that_it_is_as_wished(self) -> None:
        world, replicas = self.world, self.spec["replicas"]
        if state(world) is RunState.FAILED:
            reason = condition(world, ConditionType.FAILED).reason
            assert reason == Reason.FAILS_AT_SAME_STEP
            return
        group = world.status.group

        assert state(world) is RunState.RUNNING
        assert world.actions == []
        assert group is not None
        assert isinstance(world.wish, Wish)
        assert group.mesh == str(world.wish.plan.mesh) == world.group.mesh
        assert set(world.members()) <= {pod.index for pod in world.live_pods()}
        assert len(world.members()) == replicas
        assert world.states().count(AgentState.TRAINING) == replicas
        spares = self.spec.get("elastic", {}).get("spares", 0)
        assert len(world.pods) == replicas + spares
        assert [p.is_spare for p in world.pods.values()].count(True) == spares
        assert not any(pod.is_spare for pod in world.observe().members if pod)
        assert world.agents.keys() == {pod.uid for pod in world.pods.values()}
        assert {pod.revision for pod in world.pods.values()} == {world.wish.revision}
        assert world.status.observed_generation == world.generation
        assert world.status.replicas == world.status.ready_replicas == replicas
        assert world.status.rescales == tuple(dict.fromkeys(world.status.rescales))


RandomWorld.TestCase.settings = settings(
    max_examples=examples(25),
    stateful_step_count=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
test_after_anything_the_run_becomes_what_is_wished = RandomWorld.TestCase
