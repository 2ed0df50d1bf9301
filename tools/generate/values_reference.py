"""The reference of the chart's values, from the comments in its `values.yaml`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tools.generate.markdown import GENERATED, code, table

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).parents[2] / "charts" / "modelscaling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value that a user may set."""

    path: str
    default: object
    description: str


def render() -> str:
    """Return the chart's README: its introduction, then the table of its values."""
    introduction = (Path(__file__).parent / "chart_introduction.md").read_text(encoding="utf-8")
    values = documented_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    rows = [(code(value.path), _default(value), value.description) for value in values]
    return "\n".join([GENERATED, introduction, *table(("Value", "Default", "Meaning"), rows)])


def documented_values(text: str) -> list[Value]:
    """Return the values in a `values.yaml`, each with the comment above it.

    A mapping with a comment is one value; one without is entered. `ValueError` names a value
    that has no comment.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError(f"values are {type(root).__name__}; expected a mapping at the top")
    return list(_values(root, text.splitlines(), prefix=""))


def _values(node: yaml.MappingNode, lines: list[str], *, prefix: str) -> Iterator[Value]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        description = _comment_above(lines, key.start_mark.line)
        if description:
            default = yaml.safe_load(yaml.serialize(value))
            yield Value(path=path, default=default, description=description)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _values(value, lines, prefix=f"{path}.")
        else:
            raise ValueError(f"the value {path} has no comment; write above it what it is for")


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends on the line before `line`."""
    start = line
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return " ".join(text.lstrip().removeprefix("#").strip() for text in lines[start:line])


def _default(value: Value) -> str:
    return code(value.default if isinstance(value.default, str) else json.dumps(value.default))
