"""From pydantic's JSON schema to the structural schema that Kubernetes accepts in a CRD.

Kubernetes wants a type at every level, no references, no titles, and nothing but value
validations inside anyOf; see "Specifying a structural schema" in its documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.api.base import ApiModel

_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_KEPT = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    _INT_OR_STRING,
    _PRESERVE,
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
_INT32_MAX = 2**31 - 1


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """Return the structural schema of an API type, its CEL rules included."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return one level of the schema and all below it."""
    schema = _resolved(schema, definitions)
    if schema.get(_INT_OR_STRING):
        schema = {**schema, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        schema.pop("type", None)
    converted = {key: schema[key] for key in _KEPT if key in schema}
    if "anyOf" in schema:
        converted["anyOf"] = schema["anyOf"]
    if "description" in converted:
        converted["description"] = " ".join(converted["description"].split())
    if converted.get("type") == "integer":
        wide = converted.get("maximum", _INT32_MAX + 1) > _INT32_MAX
        converted["format"] = "int64" if wide else "int32"
    if "properties" in schema:
        converted["properties"] = {
            name: _convert(child, definitions) for name, child in schema["properties"].items()
        }
    if "items" in schema:
        converted["items"] = _convert(schema["items"], definitions)
    if converted.get("default", ...) is None or _is_opaque_object(converted):
        converted.pop("default", None)
    elif isinstance(converted.get("default"), dict):
        given = {key: value for key, value in converted["default"].items() if value is not None}
        converted["default"] = given
    return converted


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with references followed and `X | None` taken as an optional X."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _resolved({**target, **beside}, definitions)
    options = schema.get("anyOf")
    if options is None or _PRESERVE in schema or _INT_OR_STRING in schema:
        return dict(schema)
    given = [option for option in options if option.get("type") != "null"]
    if len(given) != 1:
        raise TypeError(f"a CRD cannot say {options!r}; mark the field as int-or-string or opaque")
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    return _resolved({**given[0], **beside}, definitions)


def _is_opaque_object(schema: Mapping[str, Any]) -> bool:
    """Whether a field holds any object; a default there would only show as an empty one."""
    return bool(schema.get(_PRESERVE)) and schema.get("type") == "object"
