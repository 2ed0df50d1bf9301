from __future__ import annotations

import pytest

from modelscaling_trainer.agent.presence import (
    CONNECTED_WITHIN_S,
    Contact,
    expected_pods,
    lost_pods,
)
from tests.trainer.agent_builders import make_placement


@pytest.mark.parametrize(
    ("index", "has_handed_over", "expected"),
    [
        pytest.param(0, False, {1, 2}, id="the first member hears all who meet"),
        pytest.param(0, True, {1}, id="and needs none that has handed over"),
        pytest.param(1, False, {0}, id="a member hears the first"),
        pytest.param(2, False, {0}, id="a pod that leaves hears the first"),
    ],
)
def test_who_hears_whom(*, index: int, has_handed_over: bool, expected: set[int]) -> None:
    placement = make_placement(1, 1, 1, leaving=1, index=index)

    assert expected_pods(placement, has_handed_over=has_handed_over) == expected


@pytest.mark.parametrize(
    ("contact", "after_s", "is_lost"),
    [
        pytest.param(None, 0.0, False, id="not heard yet, at first"),
        pytest.param(None, CONNECTED_WITHIN_S - 0.1, False, id="not heard yet, in time"),
        pytest.param(None, CONNECTED_WITHIN_S, True, id="not heard in time"),
        pytest.param(Contact.CONNECTED, 0.1, False, id="connected"),
        pytest.param(Contact.CONNECTED, 1000.0, False, id="connected for long"),
        pytest.param(Contact.BROKEN, 0.1, True, id="broken at once"),
        pytest.param(Contact.BROKEN, 1000.0, True, id="broken later"),
        pytest.param(Contact.PARTED, 0.1, False, id="has taken leave"),
        pytest.param(Contact.PARTED, 1000.0, False, id="has taken leave long ago"),
    ],
)
def test_who_is_lost(*, contact: Contact | None, after_s: float, is_lost: bool) -> None:
    contacts = {4: Contact.CONNECTED} | ({7: contact} if contact else {})

    lost = lost_pods(frozenset({4, 7}), contacts, since=100.0, now=100.0 + after_s)

    assert lost == ({7} if is_lost else set())


def test_a_pod_that_nobody_has_to_hear_is_never_lost() -> None:
    assert lost_pods(frozenset(), {3: Contact.BROKEN}, since=0.0, now=1000.0) == set()
