"""What a local run remembers of the growth that it took back, beside its checkpoints, so that the
same is not tried again where it is taken up; on a cluster that is `status.rejectedGrowth`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import ValidationError

from modelscaling.configuration import Message
from modelscaling.growth.mode import GrowthMode
from modelscaling.protocol import GrowthRejection
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint.directory import TEMPORARY

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

_NAME = "rejected-growth.json"

_log = logging.getLogger(__name__)


class RejectedGrowth(Message):
    """What was tried, and why it was taken back."""

    model: ModelShape
    mode: GrowthMode | None
    tolerance: float | None
    rejection: GrowthRejection

    def is_of(self, configuration: RunConfiguration) -> bool:
        """Whether a run would try the same again."""
        tried = (self.model, self.mode, self.tolerance)
        return tried == (
            configuration.model,
            configuration.growth,
            configuration.growth_tolerance,
        )


def reject_growth(configuration: RunConfiguration, rejection: GrowthRejection) -> RejectedGrowth:
    """Return what is remembered of a run that tried to grow to what is configured."""
    return RejectedGrowth(
        model=configuration.model,
        mode=configuration.growth,
        tolerance=configuration.growth_tolerance,
        rejection=rejection,
    )


def write_rejected(directory: Path, rejected: RejectedGrowth) -> None:
    """Remember it in the place of the one before, if that can be written: a full disk costs no more
    than another try to grow.
    """
    unfinished = directory / f"{TEMPORARY}{_NAME}"
    try:
        unfinished.write_text(rejected.model_dump_json())
        unfinished.replace(directory / _NAME)
    except OSError as error:
        _log.warning("growth is tried again when the run is taken up: %s", error)


def read_rejected(directory: Path) -> RejectedGrowth | None:
    """Return what was remembered; None where nothing was."""
    path = directory / _NAME
    try:
        return RejectedGrowth.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("what it says in %s is tried again, as it cannot be read: %s", path, error)
        return None
