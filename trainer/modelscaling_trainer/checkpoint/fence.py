"""Which group may write to a run's checkpoints: the newest one that has claimed them.

A group that was cut off from everybody but the volume trains on, and does not know that another has
taken its place. It must not publish: what it has would be taken for newer than what the run has. So
each group leaves its number in the directory before it saves, and a group that finds a higher one
there is over. A claim is a file whose name says it all, so there is no half of one; lower ones are
removed, in no particular order.

Between its look at the claims and the renaming of its checkpoint a process can be held up for any
time. So the newer group removes what older ones have not finished, by one renaming each: either
that comes first, or the checkpoint was published before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelscaling_trainer.checkpoint.directory import TEMPORARY, remove
from modelscaling_trainer.errors import GroupLostError

if TYPE_CHECKING:
    from pathlib import Path

_CLAIM = ".generation-"
_NUMBER = re.compile(r"\d+")
_UNFINISHED = re.compile(rf"{re.escape(TEMPORARY)}step-\d+-(\d+)-.+")
"""What `Attempt` calls its directory."""


def newest_claim(directory: Path) -> int:
    """Return the highest number that was claimed, 0 where none was.

    Raises:
        OSError: the directory cannot be read.
    """
    if not directory.is_dir():
        return 0
    numbers = (path.name.removeprefix(_CLAIM) for path in directory.glob(f"{_CLAIM}*"))
    return max((int(number) for number in numbers if _NUMBER.fullmatch(number)), default=0)


def claim(directory: Path, generation: int) -> None:
    """Claim the directory for a group; to claim it again does nothing.

    Raises:
        GroupLostError: a newer one has claimed it.
        OSError: it cannot be written.
    """
    check(directory, generation)
    directory.mkdir(parents=True, exist_ok=True)
    mine = directory / f"{_CLAIM}{generation}"
    mine.touch()
    for path in directory.glob(f"{_CLAIM}*"):
        number = path.name.removeprefix(_CLAIM)
        if _NUMBER.fullmatch(number) and int(number) < generation:
            path.unlink(missing_ok=True)


def check(directory: Path, generation: int) -> None:
    """Refuse to go on where a newer group has claimed the directory.

    Raises:
        GroupLostError: one has.
        OSError: the directory cannot be read.
    """
    newest = newest_claim(directory)
    if newest > generation:
        raise GroupLostError(describe(generation, newest))


def describe(generation: int, newest: int) -> str:
    """Say that a group is over."""
    return (
        f"the group of generation {generation} is over: generation {newest} saves the run now; "
        f"if there is no such group, remove {_CLAIM}{newest} from the run's checkpoints"
    )


def remove_older_attempts(directory: Path, generation: int) -> None:
    """Remove what groups of lower numbers have not published, so that they cannot any more.

    Raises:
        OSError: the directory cannot be read.
    """
    for path in directory.glob(f"{TEMPORARY}*"):
        match = _UNFINISHED.fullmatch(path.name)
        if match and int(match[1]) < generation:
            remove(path)
