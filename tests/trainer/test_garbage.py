from __future__ import annotations

import gc

import pytest

from modelscaling_trainer.garbage import uncollected


def test_no_cycles_are_looked_for_inside_and_they_are_afterwards() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()

    assert gc.isenabled()


def test_an_error_inside_leaves_nothing_switched_off() -> None:
    with pytest.raises(KeyError), uncollected():
        raise KeyError

    assert gc.isenabled()


def test_what_was_switched_off_before_stays_so() -> None:
    with uncollected():
        with uncollected():
            pass

        assert not gc.isenabled()
