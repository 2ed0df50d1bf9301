"""What a person can set on the operator: one frozen value, from flags or the environment."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "MODELSCALING_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The operator's settings."""

    namespaces: tuple[str, ...]
    """Namespaces whose runs are served; empty serves the whole cluster."""
    trainer_image: str
    """Image of a run's pods where spec.template names none."""
    image_pull_policy: str
    """Pull policy of the trainer image: Always, IfNotPresent or Never."""
    poll_interval_s: float
    """Seconds between two questions to the agents of a run that trains. Less makes status fresher
    and a broken group noticed sooner; each question costs about a millisecond."""
    metrics_port: int
    """Port of /metrics, /healthz and /readyz."""
    lease_name: str
    """Name of the Lease that lets one operator act at a time."""
    lease_namespace: str
    """Namespace of the Lease; empty runs without one, for a single operator."""
    lease_duration_s: float
    """Seconds after which a silent leader is replaced. Less shortens the time without an operator
    after a crash; too little loses the lease while the API server is slow."""
    identity: str
    """Who this operator is, in the Lease."""
    log_level: str
    """DEBUG, INFO, WARNING or ERROR."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.trainer_image:
            raise ValueError(
                "trainer_image is empty; give --trainer-image the image of the trainer"
            )
        if self.poll_interval_s <= 0:
            raise ValueError(f"poll_interval_s={self.poll_interval_s} must be above 0")
        if self.lease_duration_s < 1:
            raise ValueError(f"lease_duration_s={self.lease_duration_s} must be at least 1")


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings; a flag wins over its variable (`--poll-interval-s` over
    `MODELSCALING_POLL_INTERVAL_S`).

    Raises:
        SystemExit: a flag is unknown or has a value that cannot work.
    """
    parser = argparse.ArgumentParser(
        prog="modelscaling-operator", description="The operator of ModelScaling."
    )

    def flag(name: str, default: str, explanation: str) -> None:
        variable = PREFIX + name.replace("-", "_").upper()
        parser.add_argument(
            f"--{name}",
            default=environment.get(variable, default),
            help=f"{explanation} ({variable}; default: {default or 'none'})",
        )

    flag("namespaces", "", "namespaces to serve, separated by commas; none for the whole cluster")
    flag("trainer-image", f"modelscaling-trainer:{__version__}", "image of a run's pods")
    flag("image-pull-policy", "IfNotPresent", "pull policy of the trainer image")
    flag("poll-interval-s", "2", "seconds between two questions to a training run's agents")
    flag("metrics-port", "8080", "port of /metrics, /healthz and /readyz")
    flag("lease-name", "modelscaling", "name of the Lease")
    flag("lease-namespace", "", "namespace of the Lease; none to run without")
    flag("lease-duration-s", "6", "seconds after which a silent leader is replaced")
    flag("identity", os.uname().nodename, "who this operator is, in the Lease")
    flag("log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    given = parser.parse_args(arguments)
    try:
        return Settings(
            namespaces=tuple(name.strip() for name in given.namespaces.split(",") if name.strip()),
            trainer_image=given.trainer_image,
            image_pull_policy=given.image_pull_policy,
            poll_interval_s=float(given.poll_interval_s),
            metrics_port=int(given.metrics_port),
            lease_name=given.lease_name,
            lease_namespace=given.lease_namespace,
            lease_duration_s=float(given.lease_duration_s),
            identity=given.identity,
            log_level=given.log_level,
        )
    except ValueError as error:
        parser.error(str(error))
