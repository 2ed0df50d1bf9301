"""What a local run remembers of growth that it took back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling_trainer.rejected_growth import (
    RejectedGrowth,
    read_rejected,
    reject_growth,
    write_rejected,
)
from tests.trainer.agent_builders import make_configuration, make_rejection

if TYPE_CHECKING:
    from pathlib import Path


def make_rejected(loss_after: float | None = 3.0) -> RejectedGrowth:
    rejection = make_rejection().model_copy(update={"loss_after": loss_after})
    return reject_growth(make_configuration(model__layers=3), rejection)


@pytest.mark.parametrize("loss_after", [3.0, None])
def test_what_is_written_is_read_again(tmp_path: Path, loss_after: float | None) -> None:
    write_rejected(tmp_path, make_rejected(2.75))
    write_rejected(tmp_path, make_rejected(loss_after))

    assert read_rejected(tmp_path) == make_rejected(loss_after)
    assert [path.name for path in tmp_path.iterdir()] == ["rejected-growth.json"]


def test_nothing_is_remembered_where_nothing_was_taken_back(tmp_path: Path) -> None:
    assert read_rejected(tmp_path) is None


def test_what_cannot_be_written_is_named_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rejected(tmp_path / "gone", make_rejected())

    assert str(tmp_path / "gone") in caplog.text


def test_what_cannot_be_read_is_named_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rejected-growth.json").write_text('{"model": 3}')

    assert read_rejected(tmp_path) is None
    assert str(tmp_path / "rejected-growth.json") in caplog.text


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        pytest.param({}, True, id="the same"),
        pytest.param({"training__learningRate": "1e-4"}, True, id="something else"),
        pytest.param({"model__layers": 4}, False, id="another model"),
        pytest.param({"model__growth__tolerance": "0.5"}, False, id="another tolerance"),
        pytest.param({"model__growth__mode": "Stack"}, False, id="another mode"),
    ],
)
def test_it_is_of_what_would_be_tried_the_same_way(
    changes: dict[str, Any], *, is_same: bool
) -> None:
    configuration = make_configuration(**{"model__layers": 3} | changes)

    assert make_rejected().is_of(configuration) is is_same
