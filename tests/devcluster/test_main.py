from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster import __main__ as command
from devcluster.errors import ClusterError

if TYPE_CHECKING:
    from devcluster.layout import Layout


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    counts: list[int | None] = []
    monkeypatch.setattr(command, "up", lambda _, count: counts.append(count))
    monkeypatch.delenv("NODES", raising=False)
    return counts


@pytest.mark.parametrize(
    ("arguments", "environment", "count"),
    [
        (["up"], "", None),
        (["up"], "5", 5),
        (["up", "--nodes", "2"], "5", 2),
    ],
)
def test_the_number_of_nodes_is_the_options_or_the_environments(
    started: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: str,
    count: int | None,
) -> None:
    monkeypatch.setenv("NODES", environment)

    assert command.main(arguments) == 0
    assert started == [count]


@pytest.mark.parametrize("number", ["0", "-1", "x", "51"])
def test_an_impossible_number_of_nodes_is_refused(
    started: list[int | None], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["up", f"--nodes={number}"])

    assert "from 1 to 50" in capsys.readouterr().err
    assert started == []


def test_a_problem_is_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Layout, __: int | None) -> None:
        raise ClusterError("needs root")

    monkeypatch.setattr(command, "up", refuse)

    assert command.main(["up"]) == 1
    assert "devcluster: needs root" in capsys.readouterr().out
