"""What a command says when it cannot do what it was asked: exit code 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.api.validation import Problem


class UsageError(Exception):
    """The arguments or the file are wrong; every line names a culprit and the fix."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def invalid(file: str, problems: list[Problem]) -> UsageError:
    """Return the error of a resource that cannot be run."""
    return UsageError(*(f"{file}: {problem}" for problem in problems))
