"""The reference of a resource's fields, from its CustomResourceDefinition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.crd import modelscaling_crd
from tools.generate.markdown import GENERATED, code, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BOUNDS = (
    ("minimum", "≥ {}"),
    ("maximum", "≤ {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("minProperties", "at least {} keys"),
    ("maxProperties", "at most {} keys"),
)


def render() -> str:
    """Return `docs/reference/crd.md`."""
    return "\n".join([GENERATED, *_resource(modelscaling_crd())])


def _resource(crd: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the reference of one resource."""
    names = crd["spec"]["names"]
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    yield f"# {names['kind']}\n"
    yield f"{schema['description']}\n"
    yield f"* `apiVersion: {crd['spec']['group']}/{version['name']}`, `kind: {names['kind']}`"
    yield f"* short name {code(*names['shortNames'])}, {crd['spec']['scope'].lower()}"
    yield f"* subresources {code(*version['subresources'])}\n"
    yield from _rules(schema)
    for part in ("spec", "status"):
        yield from _object(part, schema["properties"][part])
    yield "## Columns of `kubectl get`\n"
    yield from table(
        ("Column", "From", "Meaning"),
        [
            (column["name"], code(column["jsonPath"]), column["description"])
            for column in version["additionalPrinterColumns"]
        ],
    )


def _object(path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section of one object, then those of the objects in it."""
    fields: Mapping[str, Mapping[str, Any]] = schema["properties"]
    required = schema.get("required", [])
    yield f"## {path}\n"
    yield f"{schema.get('description', '')}\n"
    yield from table(
        ("Field", "Type", "Bounds", "Default", "Meaning"),
        [
            (
                code(name),
                _type(field),
                _bounds(field),
                _default(field, is_required=name in required),
                field["description"],
            )
            for name, field in fields.items()
        ],
    )
    yield from _rules(schema)
    for name, field in fields.items():
        if "properties" in field:
            yield from _object(f"{path}.{name}", field)
        elif "properties" in field.get("items", {}):
            yield from _object(f"{path}.{name}[]", field["items"])


def _type(schema: Mapping[str, Any]) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in schema:
        return "one of " + ", ".join(code(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "format" in schema:
        return f"{schema['type']} ({schema['format']})"
    return str(schema.get("type", "any"))


def _bounds(schema: Mapping[str, Any]) -> str:
    bounds = [text.format(schema[key]) for key, text in _BOUNDS if key in schema]
    if "pattern" in schema:
        bounds.append(f"matches {code(schema['pattern'])}")
    return ", ".join(bounds)


def _default(schema: Mapping[str, Any], *, is_required: bool) -> str:
    if is_required and "default" not in schema:
        return "required"
    if schema.get("default") == {} and "properties" in schema:
        return "that of its fields"
    return code(schema["default"]) if "default" in schema else ""


def _rules(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the list of the rules that the API server enforces on an object."""
    rules = schema.get("x-kubernetes-validations", [])
    if not rules:
        return
    yield "Rules:\n"
    for rule in rules:
        at = f"{code(rule['fieldPath'].removeprefix('.'))}: " if "fieldPath" in rule else ""
        means = f" ({rule['message']})" if "message" in rule else ""
        yield f"* {at}{code(rule['rule'])}{means}"
    yield ""
