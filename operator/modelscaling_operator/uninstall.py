"""Deletes ModelScalings before the operator goes: `python -m modelscaling_operator.uninstall`.

A ModelScaling carries the operator's finalizer. If the operator went first, every one that is
deleted later would hang for ever; so the chart runs this as a hook before it removes anything.
It runs apart from the operator, which has to be at work to let go of what is deleted here.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from kubernetes import client, config

from modelscaling.api.modelscaling import GROUP, PLURAL, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REQUEST_TIMEOUT_S = 30
POLL_INTERVAL_S = 1.0
_NOT_FOUND = 404

logger = logging.getLogger(__name__)


class Runs(Protocol):
    """The ModelScalings of a cluster, each known by its namespace and name."""

    def all(self) -> list[tuple[str, str]]:
        """Return those that exist."""

    def delete(self, namespace: str, name: str) -> None:
        """Ask for the deletion of one; nothing happens if it is gone."""


class CustomObjects(Protocol):
    """What is used of `kubernetes.client.CustomObjectsApi`."""

    def list_cluster_custom_object(
        self, group: str, version: str, plural: str, /, *, _request_timeout: float
    ) -> object:
        """Return the list of all namespaces."""

    def list_namespaced_custom_object(
        self, group: str, version: str, namespace: str, plural: str, /, *, _request_timeout: float
    ) -> object:
        """Return the list of one namespace."""

    def delete_namespaced_custom_object(
        self,
        group: str,
        version: str,
        namespace: str,
        plural: str,
        name: str,
        /,
        *,
        _request_timeout: float,
    ) -> object:
        """Delete one."""


def delete_runs(
    runs: Runs,
    *,
    timeout_s: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[tuple[str, str]]:
    """Delete all runs and wait until they are gone; return those that are left at the timeout."""
    deadline = now() + timeout_s
    asked: set[tuple[str, str]] = set()
    while left := runs.all():
        for namespace, name in sorted(set(left) - asked):
            logger.info("deleting %s/%s", namespace, name)
            runs.delete(namespace, name)
            asked.add((namespace, name))
        if now() >= deadline:
            return left
        pause(POLL_INTERVAL_S)
    return []


class ClusterRuns:
    """The ModelScalings of some namespaces of a real cluster, or of all where none is named."""

    def __init__(self, api: CustomObjects, namespaces: Sequence[str]) -> None:
        self._api = api
        self._namespaces = namespaces

    def all(self) -> list[tuple[str, str]]:
        """Return those that exist; none where the definition itself is gone."""
        try:
            listed = self._lists()
        except client.ApiException as error:
            if error.status == _NOT_FOUND:
                return []
            raise
        metadata = [item["metadata"] for content in listed for item in content["items"]]
        return [(entry["namespace"], entry["name"]) for entry in metadata]

    def _lists(self) -> list[Any]:
        if not self._namespaces:
            return [
                self._api.list_cluster_custom_object(
                    GROUP, VERSION, PLURAL, _request_timeout=REQUEST_TIMEOUT_S
                )
            ]
        return [
            self._api.list_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, _request_timeout=REQUEST_TIMEOUT_S
            )
            for namespace in self._namespaces
        ]

    def delete(self, namespace: str, name: str) -> None:
        """Ask for the deletion of one; nothing happens if it is gone."""
        try:
            self._api.delete_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=REQUEST_TIMEOUT_S
            )
        except client.ApiException as error:
            if error.status != _NOT_FOUND:
                raise


def main(arguments: Sequence[str]) -> int:
    """Delete the runs; the exit code is 1 if some are left at the timeout."""
    parser = argparse.ArgumentParser(
        prog="python -m modelscaling_operator.uninstall", description=__doc__
    )
    parser.add_argument("--namespace", action="append", default=[], help="repeatable; all if none")
    parser.add_argument("--timeout-seconds", type=float, default=180)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    left = delete_runs(
        ClusterRuns(client.CustomObjectsApi(), given.namespace), timeout_s=given.timeout_seconds
    )
    for namespace, name in left:
        logger.error(
            "%s/%s is still there after %g s; see whether the operator runs, or let go of it with "
            "kubectl patch msc %s --namespace %s --type=merge "
            """--patch='{"metadata":{"finalizers":null}}'""",
            *(namespace, name, given.timeout_seconds, name, namespace),
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
