"""What the API server would say of a spec: its structure, its bounds and its CEL rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cel
from pydantic import ValidationError

from modelscaling.api.base import ApiModel, Rule
from modelscaling.api.model import ModelSpec
from modelscaling.api.modelscaling import ModelScalingSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_T = TypeVar("_T", bound=ApiModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a spec."""

    field: str
    """The path of the field, such as `spec.model.heads`."""
    message: str
    """The value, what was expected and the fix."""

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.field}: {self.message}"


class InvalidSpecError(ValueError):
    """A spec that cannot be run; carries every problem that was found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse_spec(spec: Mapping[str, Any]) -> ModelScalingSpec:
    """Return the typed spec; `InvalidSpecError` names every field that is wrong."""
    return _parse(ModelScalingSpec, spec, "spec")


def parse_model(model: Mapping[str, Any]) -> ModelSpec:
    """Return the typed `spec.model`; `InvalidSpecError` names every field that is wrong."""
    return _parse(ModelSpec, model, "spec.model")


def _parse(kind: type[_T], content: Mapping[str, Any], path: str) -> _T:
    """Return the part of a spec that stands at `path`."""
    try:
        parsed = kind.model_validate(content)
    except ValidationError as error:
        raise InvalidSpecError([_problem(detail, path) for detail in error.errors()]) from None
    problems = list(_broken_rules(parsed, path))
    if problems:
        raise InvalidSpecError(problems)
    return parsed


def _problem(detail: Any, path: str) -> Problem:  # noqa: ANN401 - TypedDict differs by release
    """Return one of pydantic's errors in our words."""
    field = path + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]
    )
    match detail["type"]:
        case "missing":
            return Problem(field=field, message="is required; set it")
        case "extra_forbidden":
            return Problem(field=field, message="is not a field of the API; remove or correct it")
        case "value_error":
            return Problem(
                field=field, message=f"{detail['input']!r} is not valid: {detail['ctx']['error']}"
            )
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(field=field, message=f"{detail['input']!r} is not valid: {message}")


def _broken_rules(value: ApiModel, path: str) -> Iterator[Problem]:
    """Yield the problems that CEL finds in `value` and in everything below it."""
    content = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    for rule in value.rules:
        if not _evaluate(rule.expression, content):
            field = f"{path}.{rule.field}" if rule.field else path
            yield Problem(field=field, message=rule.message_for(content))
    for name, info in type(value).model_fields.items():
        child = getattr(value, name)
        if isinstance(child, ApiModel):
            yield from _broken_rules(child, f"{path}.{info.alias}")
        elif isinstance(child, tuple):
            for index, item in enumerate(child):
                if isinstance(item, ApiModel):
                    yield from _broken_rules(item, f"{path}.{info.alias}[{index}]")


def _evaluate(expression: str, content: Mapping[str, Any]) -> Any:  # noqa: ANN401
    return cel.evaluate(expression, {"self": content})


__all__ = ["InvalidSpecError", "Problem", "Rule", "parse_model", "parse_spec"]
