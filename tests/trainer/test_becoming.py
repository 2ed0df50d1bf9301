"""How the model of the state becomes the declared one."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.trained_model import TrainedModel
from modelscaling_trainer.becoming import become
from modelscaling_trainer.settlement import Load
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    import pytest

SMALL = make_run("unused").model


def test_the_step_of_growth_that_is_inexact_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    larger = asdict(SMALL) | {"layers": 4, "feed_forward_size": 96}
    decision = Load(step=7, model=TrainedModel(shape=SMALL))
    with caplog.at_level(logging.INFO):
        become(make_run("unused", model=larger, growth=GrowthMode.STACK), decision, None)
        become(make_run("unused", model=larger, growth=GrowthMode.PRESERVE), decision, None)

    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("growth after step 7 is inexact: layers 2 to 4: the st")
    assert len(caplog.records) == 4
