from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.crd import modelscaling_crd
from tools.generate.crd_reference import render

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = render()
SCHEMA = modelscaling_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _objects(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object below the spec and the status, by the path that a reader knows it by."""
    if "properties" in schema:
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from _objects(f"{path}.{name}", field)
        yield from _objects(f"{path}.{name}[]", field.get("items", {}))


OBJECTS = {
    path: schema
    for part in ("spec", "status")
    for path, schema in _objects(part, SCHEMA["properties"][part])
}


def _section(path: str) -> str:
    return REFERENCE.partition(f"## {path}\n")[2].partition("\n## ")[0]


def test_every_object_has_a_section_with_every_field_of_it() -> None:
    assert len(OBJECTS) > 10
    for path, schema in OBJECTS.items():
        for name in schema["properties"]:
            assert f"| `{name}` |" in _section(path)


def test_every_field_has_its_meaning_its_bounds_and_its_default() -> None:
    row = next(line for line in _section("spec").splitlines() if line.startswith("| `replicas`"))

    assert row.split(" | ")[:4] == ["| `replicas`", "integer (int32)", "≥ 0, ≤ 4096", "`1`"]
    assert "It is what kubectl scale and autoscalers change" in row


def test_every_rule_of_the_api_server_is_there() -> None:
    for path, schema in OBJECTS.items():
        for rule in schema.get("x-kubernetes-validations", []):
            assert f"`{rule['rule']}`" in _section(path)


def test_no_field_is_without_a_description() -> None:
    for path, schema in OBJECTS.items():
        for name, field in schema["properties"].items():
            assert field.get("description"), f"{path}.{name}"


def test_the_columns_of_kubectl_are_explained() -> None:
    for column in modelscaling_crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert f"| {column['name']} | `{column['jsonPath']}` |" in REFERENCE
