"""The operator put together: what is started, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

import kopf

from modelscaling_operator.agents import Agents
from modelscaling_operator.decision import Policy
from modelscaling_operator.handlers import Handlers
from modelscaling_operator.health import HealthServer, Vitals
from modelscaling_operator.kube import RUNS, Kube, KubeError, load_configuration
from modelscaling_operator.lease import Lease
from modelscaling_operator.loop import Surroundings
from modelscaling_operator.metrics import Metrics
from modelscaling_operator.resync import Resync

if TYPE_CHECKING:
    from modelscaling_operator.settings import Settings

_logger = logging.getLogger(__name__)

_CRD_PERIOD_S = 1.0


async def serve(settings: Settings, *, stop: asyncio.Event | None = None) -> None:
    """Serve runs until a signal comes or `stop` is set.

    The Lease is taken before kopf begins to watch, so that a standby holds no cache, and what is
    seen first is new. It is given back last, when no loop acts any more.
    """
    stop = stop or asyncio.Event()
    metrics, vitals = Metrics(), Vitals(time.monotonic)
    health = HealthServer(vitals, metrics, port=settings.metrics_port)
    kube, agents = Kube(await load_configuration()), Agents()
    lease = Lease(kube, settings, on_loss=_end_at_once)
    handlers = Handlers(
        Surroundings(
            kube=kube,
            agents=agents,
            metrics=metrics,
            vitals=vitals,
            policy=Policy(trainer_image=settings.trainer_image, poll_s=settings.poll_interval_s),
            pull_policy=settings.image_pull_policy,
        )
    )
    resync = Resync(kube, handlers.lost, handlers.forget)

    async def start(settings: kopf.OperatorSettings, **_: object) -> None:
        Handlers.configure(settings)
        # A standby is ready to take over.
        health.ready = True
        if with_lease:
            await lease.acquire()
        await _await_crd(kube)
        resync.start()

    async def end(**_: object) -> None:
        await resync.stop()
        await lease.release()
        # kopf waits five seconds for tasks that it does not know, such as kept connections.
        await health.stop()

    with_lease = bool(settings.lease_namespace)
    kopf.on.startup(registry=handlers.registry, errors=kopf.ErrorsMode.PERMANENT)(start)
    kopf.on.cleanup(registry=handlers.registry)(end)
    try:
        await health.start()
        await kopf.operator(
            registry=handlers.registry,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            stop_flag=stop,
        )
    finally:
        await health.stop()
        await agents.close()
        await kube.close()


async def _await_crd(kube: Kube) -> None:
    """Wait until the CRD is there: kopf looks for it once, and would serve nothing for ever."""
    told = False
    while not await _is_served(kube):
        if not told:
            _logger.warning(
                "waiting for the CustomResourceDefinition of ModelScaling; install it from crds/"
            )
        told = True
        await asyncio.sleep(_CRD_PERIOD_S)


async def _is_served(kube: Kube) -> bool:
    try:
        return await kube.serves(RUNS)
    except KubeError as error:
        _logger.warning("the API server is not asked: %s", error)
        return False


def _end_at_once() -> None:
    """End without another write: somebody else acts from now on."""
    logging.shutdown()
    os._exit(os.EX_TEMPFAIL)
