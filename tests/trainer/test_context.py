from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelscaling_trainer.parallel.context import positions


@given(parts=st.integers(1, 9), block=st.integers(1, 7))
def test_every_position_is_computed_once_and_all_have_the_same_causal_work(
    parts: int, block: int
) -> None:
    tokens = 2 * parts * block
    taken = [positions(tokens, parts, part).tolist() for part in range(parts)]

    assert sorted(position for part in taken for position in part) == list(range(tokens))
    assert all(part == sorted(part) for part in taken)
    # A token at position p looks at p + 1 keys.
    assert len({sum(position + 1 for position in part) for part in taken}) == 1
