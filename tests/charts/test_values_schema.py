from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"replicas": 3}, "replicas"),
    "a misspelt value below another": ({"image": {"name": "x"}}, "name"),
    "no replica": ({"replicaCount": 0}, "replicaCount"),
    "replicas as text": ({"replicaCount": "two"}, "replicaCount"),
    "a tag as a digest": ({"image": {"digest": "v1"}}, "digest"),
    "a policy that is none": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "a namespace that cannot be": ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
    "an interval without a unit": (
        {"metrics": {"podMonitor": {"interval": "15"}}},
        "interval",
    ),
    "a log level that is none": ({"log": {"level": "LOUD"}}, "level"),
    "a number as a label": ({"podLabels": {"team": 1}}, "podLabels"),
}


@pytest.mark.cluster
@pytest.mark.parametrize(("values", "culprit"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused_by_name(
    values: dict[str, Any], culprit: str, helm: str, chart: Path, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))

    refused = subprocess.run(
        [helm, "template", "msc", chart, "--values", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert refused.returncode != 0
    assert culprit in refused.stderr


def test_no_object_of_the_schema_takes_what_it_does_not_know(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())

    for path, node in _objects(schema, ""):
        assert node.get("additionalProperties") is False, path


def _objects(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of the schema that lists the properties of an object."""
    if not isinstance(node, dict):
        return
    if "properties" in node and node.get("type") == "object":
        yield path, node
    for key, child in node.items():
        yield from _objects(child, f"{path}/{key}")


def test_the_schema_knows_exactly_the_values_that_there_are(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text())

    # Helm itself puts `global` into the values of every chart.
    assert schema["properties"].keys() == values.keys() | {"global"}
