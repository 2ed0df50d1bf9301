"""The spec that was accepted last: what a run goes on with while its present one cannot be run.

It is in the status, so that a lost pod is replaced although the spec became invalid in place, by
whichever operator is there then.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.api.status import ACCEPTED_SPEC_MAX_LENGTH
from modelscaling_operator.growing import keep_or_grow, trained_so_far
from modelscaling_operator.wish import Rejection, Wish, resolve_wish

if TYPE_CHECKING:
    from modelscaling.api.status import ModelScalingStatus
    from modelscaling_operator.identity import RunIdentity


def describe_spec(wish: Wish) -> str:
    """Return the spec of a wish as the status carries it; nothing where it is too long for that."""
    text = wish.spec.model_dump_json(by_alias=True, exclude_unset=True)
    return text if len(text) <= ACCEPTED_SPEC_MAX_LENGTH else ""


def accepted_or_before(
    declared: Wish | Rejection, run: RunIdentity, status: ModelScalingStatus
) -> Wish | Rejection:
    """Return what is declared, with the model that the run is to train now; where it cannot be run,
    what was accepted last, with the reason why it is not what is declared.
    """
    wish = keep_or_grow(declared, status)
    if isinstance(wish, Wish) or not status.accepted_spec:
        return wish
    spec = json.loads(status.accepted_spec)
    before = keep_or_grow(resolve_wish(run, spec, trained_so_far(status)), status)
    if isinstance(before, Rejection):
        return wish
    message = f"{wish.message} The run goes on with the spec that it had before."
    return replace(before, refusal=replace(wish, message=message))
