from __future__ import annotations

import pytest
import torch

from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.interruption import checking
from modelscaling_trainer.request import Requests
from tests.trainer.decoders import make_decoder, make_shape

_TOKENS = torch.arange(16).view(2, 8) % 4


@pytest.mark.parametrize(
    ("checks", "passes"),
    [
        pytest.param(1, "", id="in the forward pass"),
        pytest.param(3, "forward", id="in the backward pass"),
    ],
)
def test_a_pass_is_left_between_two_layers_once_the_group_is_abandoned(
    checks: int, passes: str
) -> None:
    decoder = make_decoder(make_shape(layers=2))
    requests = Requests()
    seen: list[None] = []

    def check() -> None:
        seen.append(None)
        if len(seen) == checks:
            requests.abandon("rank 1 is gone")
        requests.check_abandoned()

    decoder.between_layers = checking(check)
    done = ""
    with pytest.raises(GroupLostError, match="rank 1 is gone"):  # noqa: PT012 - where it is raised
        loss = decoder.loss_sum(_TOKENS, _TOKENS)
        done = "forward"
        loss.backward()  # type: ignore[no-untyped-call]

    assert done == passes
    assert len(seen) == checks
