from __future__ import annotations

import pytest

from bench.growth_result import Difference, Pair, table


def make_pairs(*differences: float) -> list[Pair]:
    return [Pair(grown=1.5 + difference, scratch=1.5, small=1.4) for difference in differences]


def test_a_difference_has_the_interval_of_students_t() -> None:
    difference = Difference.of(make_pairs(-0.01, -0.02, -0.03))

    # 4.303 deviations of 0.01, over the root of 3.
    assert difference.mean == pytest.approx(-0.02)
    assert difference.spread == pytest.approx(0.02484, abs=1e-5)
    assert str(difference) == "-0.020 ± 0.025"


def test_the_seeds_own_losses_do_not_spread_the_difference() -> None:
    pairs = [Pair(grown=loss - 0.01, scratch=loss, small=loss) for loss in (1.2, 1.5, 1.9)]

    assert Difference.of(pairs).spread == pytest.approx(0)


@pytest.mark.parametrize(
    ("differences", "reading"),
    [
        pytest.param((-0.019, -0.020, -0.021), "growing is better", id="better"),
        pytest.param((0.019, 0.020, 0.021), "growing is worse", id="worse"),
        pytest.param((-0.01, -0.02, -0.03), "not told apart", id="spread over chance"),
        pytest.param((0.0, 0.0, 0.0), "not told apart", id="equal"),
    ],
)
def test_only_what_is_more_than_chance_is_read(
    differences: tuple[float, ...], reading: str
) -> None:
    assert Difference.of(make_pairs(*differences)).reading == reading


def test_a_table_has_a_row_for_each_way_to_grow() -> None:
    ways = {"layers": make_pairs(-0.019, -0.02, -0.021), "hidden": make_pairs(0.1, -0.1, 0.0)}

    header, line, *rows = table(ways)

    assert header == "| | small | from scratch | grown | seed 1 | seed 2 | seed 3 | difference | |"
    assert line.count("|") == header.count("|")
    layers, hidden = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    assert layers[:4] == ["layers", "1.400", "1.500", "1.480"]
    assert layers[4:] == ["-0.019", "-0.020", "-0.021", "-0.020 ± 0.002", "growing is better"]
    assert hidden[:4] == ["hidden", "1.400", "1.500", "1.500"]
    assert hidden[4:] == ["+0.100", "-0.100", "+0.000", "+0.000 ± 0.248", "not told apart"]
