"""Carries out what was decided; turns what the API server refuses into a `Refusal`."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling_operator.action import (
    Assign,
    CreatePods,
    DeletePod,
    DeleteRun,
    LabelPod,
    Stop,
)
from modelscaling_operator.agents import AgentError
from modelscaling_operator.kube import ForbiddenError, InvalidError, server_message
from modelscaling_operator.observation import Refusal
from modelscaling_operator.run_objects import NameTakenError
from modelscaling_operator.wish import Wish

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelscaling_operator.action import Action
    from modelscaling_operator.agents import Agents
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.observation import Pod
    from modelscaling_operator.run_objects import RunObjects
    from modelscaling_operator.wish import Rejection

_logger = logging.getLogger(__name__)

RETRY_S = {
    # Nothing but an edit helps, and an edit is looked at at once.
    Reason.INVALID_TEMPLATE: 60,
    # A quota may be freed.
    Reason.POD_FORBIDDEN: 10,
    # Objects of a deleted run of the same name go within a second or two.
    Reason.NAME_TAKEN: 1,
}


class Actor:
    """Carries out actions for one run."""

    def __init__(
        self, run: RunIdentity, objects: RunObjects, agents: Agents, *, pull_policy: str
    ) -> None:
        self._run = run
        self._objects = objects
        self._agents = agents
        self._pull_policy = pull_policy

    async def act(
        self, wish: Wish | Rejection, actions: Iterable[Action], now: datetime
    ) -> Refusal | None:
        """Carry out actions in order; return what the API server refused.

        An agent that does not answer is not an error: the next look sees what came of it.

        Raises:
            KubeError: the API server could not do one; the rest was left out.
        """
        refusal = None
        for action in actions:
            match action:
                case CreatePods():
                    refusal = await self._create(wish, action, now)
                case DeletePod():
                    await self._objects.delete_pod(action.pod, grace_s=action.grace_s)
                case LabelPod():
                    await self._objects.label_pod(action.pod, is_spare=action.is_spare)
                case Assign() | Stop():
                    await self.tell([action])
                case DeleteRun():
                    await self._objects.delete_run()
        return refusal

    async def tell(self, messages: Iterable[Assign | Stop]) -> None:
        """Tell agents, all at once; one that does not answer keeps nobody waiting."""
        key = await self._objects.key()
        told = [
            (pod, message)
            for message in messages
            for pod in (message.pods if isinstance(message, Assign) else (message.pod,))
        ]
        await asyncio.gather(*(self._tell_one(key, pod, message) for pod, message in told))

    async def _create(
        self, wish: Wish | Rejection, action: CreatePods, now: datetime
    ) -> Refusal | None:
        assert isinstance(wish, Wish)  # nobody decides to create pods without one
        try:
            await self._objects.create_pods(
                wish,
                action.indexes,
                image=action.image,
                avoid_nodes=action.avoid_nodes,
                source_uid=action.source_uid,
                pull_policy=self._pull_policy,
            )
        except InvalidError as error:
            return _refusal(Reason.INVALID_TEMPLATE, server_message(error), now)
        except ForbiddenError as error:
            return _refusal(Reason.POD_FORBIDDEN, server_message(error), now)
        except NameTakenError as error:
            return _refusal(Reason.NAME_TAKEN, str(error), now)
        return None

    async def _tell_one(self, key: bytes, pod: Pod, message: Assign | Stop) -> None:
        address = pod.address or ""
        try:
            if isinstance(message, Assign):
                await self._agents.assign(key, address, message.assignment)
            else:
                await self._agents.stop(
                    self._run, key, address, generation=message.generation, mode=message.mode
                )
        except AgentError as error:
            _logger.info(
                "agent was not told",
                extra={"run": str(self._run), "pod": pod.name, "why": str(error)},
            )


def _refusal(reason: Reason, message: str, now: datetime) -> Refusal:
    return Refusal(
        reason=reason, message=message, retry_time=now + timedelta(seconds=RETRY_S[reason])
    )
