"""What every type of the API shares: strict, frozen, camelCase outside and snake_case inside.

A type may carry CEL rules for what one of its fields says about another. They are written once:
the CRD carries them to the API server, and `modelscaling validate` and the operator evaluate the
same text (`modelscaling.api.validation`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from modelscaling.quantity import QUANTITY_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One CEL rule: an expression over `self`, and the message when it is false."""

    expression: str
    message: str
    """What is wrong and how to mend it, with the fields' values as `{field}` or `{field.below}`."""

    field: str
    """The field that the error is reported at, relative to the type; empty for the type itself."""

    def message_expression(self) -> str:
        """Return the CEL expression that yields the message.

        It formats, because the API server cannot bound the cost of adding up strings that it
        makes of integers, and refuses the CRD.
        """
        text = _PLACEHOLDER.sub("%s", self.message.replace("%", "%%"))
        values = ", ".join(f"self.{path}" for path in _PLACEHOLDER.findall(self.message))
        return f"'{text}'.format([{values}])"

    def message_for(self, content: Mapping[str, Any]) -> str:
        """Return the message for the JSON of a value, as the API server would."""
        return _PLACEHOLDER.sub(lambda found: str(_value(content, found[1])), self.message)


_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9.]+)\}")


def _value(content: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401 - any JSON
    for name in path.split("."):
        content = content[name]
    return content


def _with_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the type's rules to its JSON schema, in the form that a CRD carries."""
    assert issubclass(model, ApiModel)
    validations = [
        {
            "rule": rule.expression,
            "messageExpression": rule.message_expression(),
            "reason": "FieldValueInvalid",
            **({"fieldPath": f".{rule.field}"} if rule.field else {}),
        }
        for rule in model.rules
    ]
    fields = {field.alias: field for field in model.model_fields.values()}
    validations += [
        {
            "rule": _unchanged(field, is_optional=not fields[field].is_required()),
            "message": f"{field} cannot be changed; {instead}",
            "reason": "FieldValueForbidden",
            "fieldPath": f".{field}",
        }
        for field, instead in model.immutable
    ]
    if validations:
        schema["x-kubernetes-validations"] = validations


def _unchanged(field: str, *, is_optional: bool) -> str:
    """Return the CEL expression that a field is as it was, or absent as it was."""
    same = f"self.{field} == oldSelf.{field}"
    if not is_optional:
        return same
    return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"


class ApiModel(BaseModel):
    """The base of every type of the API."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        json_schema_extra=_with_rules,
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules among the type's own fields."""

    immutable: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Fields that cannot change after creation, each with what to do instead."""


Count = Annotated[int, Field(strict=True)]
"""A plain integer; a quoted number is refused, as the API server refuses it."""

Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}, union_mode="left_to_right"),
]
"""An integer, or a string with the suffix k, M, B or T."""


def quantity_rule(field: str) -> Rule:
    """Return the rule that `field` holds a positive quantity, if it is given."""
    value = f"self.{field}"
    return Rule(
        expression=(
            f"!has({value}) || (type({value}) == int ? {value} > 0 : "
            f"{value}.matches('{QUANTITY_PATTERN.replace(chr(92), chr(92) * 2)}'))"
        ),
        message=(
            f"{field}={{{field}}} is not a quantity; write a positive integer or a "
            "number with the suffix k, M, B or T, such as 200M"
        ),
        field=field,
    )


DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]{1,2})?$"

Decimal = Annotated[str, Field(pattern=DECIMAL_PATTERN, min_length=1, max_length=24)]
"""A number that is not negative, as a string, such as \"3e-4\" or \"0.1\"."""
