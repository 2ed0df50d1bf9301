"""What every type of the API shares: strict, frozen, camelCase outside and snake_case inside.

A type may carry CEL rules for what one of its fields says about another. They are written once:
the CRD carries them to the API server, and `modelscaling validate` and the operator evaluate the
same text (`modelscaling.api.validation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from modelscaling.quantity import QUANTITY_PATTERN


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One CEL rule: an expression over `self`, and the message when it is false."""

    expression: str
    message: str
    """A CEL expression that yields the message, with the values in it."""

    field: str
    """The field that the error is reported at, relative to the type; empty for the type itself."""


def _with_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the type's rules to its JSON schema, in the form that a CRD carries."""
    assert issubclass(model, ApiModel)
    validations = [
        {
            "rule": rule.expression,
            "messageExpression": rule.message,
            "reason": "FieldValueInvalid",
            **({"fieldPath": f".{rule.field}"} if rule.field else {}),
        }
        for rule in model.rules
    ]
    validations += [
        {
            "rule": f"self.{field} == oldSelf.{field}",
            "message": f"{field} cannot be changed; {instead}",
            "reason": "FieldValueForbidden",
            "fieldPath": f".{field}",
        }
        for field, instead in model.immutable
    ]
    if validations:
        schema["x-kubernetes-validations"] = validations


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
            f"'{field}=' + string({value}) + ' is not a quantity; write a positive integer or a "
            f"number with the suffix k, M, B or T, such as 200M'"
        ),
        field=field,
    )


DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]{1,2})?$"

Decimal = Annotated[str, Field(pattern=DECIMAL_PATTERN, min_length=1, max_length=24)]
"""A number that is not negative, as a string, such as \"3e-4\" or \"0.1\"."""
