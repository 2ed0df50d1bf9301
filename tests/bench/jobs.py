"""A job that trains nothing, for the tests of what leads real ones through changes."""

from __future__ import annotations

from bench.outage import Outage


class NotedJob:
    """Notes how many pods there are when something happens to it."""

    def __init__(self) -> None:
        self.pods = 2
        self.happened: list[str] = []

    def steps(self) -> int:
        return 0

    def kill_a_worker(self, pod: int) -> None:
        self._note(f"worker of pod {pod}")

    def kill_worker(self) -> Outage:
        return self._note("worker")

    def join(self) -> tuple[Outage, float]:
        self.pods += 1
        return self._note("join"), 7.0

    def leave(self) -> Outage:
        return self._without_a_pod("leave")

    def kill_pod(self) -> Outage:
        return self._without_a_pod("killed pod")

    def lose_node(self) -> Outage:
        return self._without_a_pod("lost node")

    def shard(self) -> Outage:
        return self._note("mesh")

    def _without_a_pod(self, what: str) -> Outage:
        self.pods -= 1
        return self._note(what)

    def _note(self, what: str) -> Outage:
        self.happened.append(f"{what} {self.pods}")
        return Outage(seconds=0.5, steps_again=1)
