from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cel
import pytest
import yaml

from demo.kubectl import ToolError
from modelscaling.api.crd import modelscaling_crd, render
from modelscaling.api.modelscaling import API_VERSION, KIND
from tests.conftest import CRD_FILE
from tests.shared.spec import BROKEN_RULES, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Cluster


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every field below `schema` with its path."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]", schema["items"]
        yield from _fields(schema["items"], f"{path}[]")


def _spec_and_status() -> list[tuple[str, dict[str, Any]]]:
    (version,) = modelscaling_crd()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    return [
        *_fields(schema["spec"], "spec"),
        *_fields(schema["status"], "status"),
    ]


def test_the_file_is_what_the_code_generates() -> None:
    assert CRD_FILE.read_text() == render()


def test_every_field_is_documented_and_says_its_name_first() -> None:
    undocumented = [
        path
        for path, field in _spec_and_status()
        if not path.endswith("[]")
        and not field.get("description", "").lower().startswith(path.rpartition(".")[2].lower())
    ]

    assert undocumented == []


def test_every_string_list_and_number_has_a_bound() -> None:
    needed = {"string": ("maxLength", "enum"), "array": ("maxItems",), "integer": ("maximum",)}
    unbounded = [
        path
        for path, field in _spec_and_status()
        if field.get("type") in needed
        and not any(bound in field for bound in needed[field["type"]])
        and field.get("format") not in {"date-time", "int64"}
    ]

    assert unbounded == []


def test_no_field_is_a_float() -> None:
    assert [path for path, field in _spec_and_status() if field.get("type") == "number"] == []


@pytest.mark.parametrize(
    ("before", "after", "is_allowed"),
    [
        pytest.param(None, None, True, id="none stays none"),
        pytest.param("/a", "/a", True, id="the same stays"),
        pytest.param("/a", "/b", False, id="other weights"),
        pytest.param(None, "/a", False, id="weights for a run that began with draws"),
        pytest.param("/a", None, False, id="no weights any more"),
    ],
)
def test_the_weights_to_begin_with_cannot_be_changed(
    before: str | None, after: str | None, *, is_allowed: bool
) -> None:
    (version,) = modelscaling_crd()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["model"]
    (rule,) = [
        rule["rule"]
        for rule in schema["x-kubernetes-validations"]
        if rule.get("fieldPath") == ".initFrom"
    ]
    specs = [
        make_spec(model__initFrom=path and {"checkpoint": {"path": path}})["model"]
        for path in (after, before)
    ]

    allowed = cel.evaluate(rule, dict(zip(("self", "oldSelf"), specs, strict=True)))

    assert allowed is is_allowed


def _resource(spec: dict[str, Any]) -> str:
    return yaml.safe_dump(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "a"}, "spec": spec}
    )


def _refusal(cluster: Cluster, namespace: str, resource: str) -> str:
    """Return what the API server says against a resource."""
    with pytest.raises(ToolError) as caught:
        cluster.run(
            "kubectl",
            "create",
            "--dry-run=server",
            f"--namespace={namespace}",
            "--filename=-",
            stdin=resource,
        )
    return str(caught.value)


@pytest.mark.cluster
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize(("changes", "field", "message"), BROKEN_RULES)
def test_the_api_server_says_of_a_broken_rule_what_validate_says(
    cluster: Cluster, changes: dict[str, Any], field: str, message: str
) -> None:
    refusal = _refusal(cluster, "default", _resource(make_spec(**changes)))

    assert f"{field}:" in refusal
    assert message in refusal


@pytest.mark.cluster
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__preset": "llama-9"}, ["spec.model.preset", '"llama-9"', '"llama-3.1-8b"']),
        ({"replicas": -1}, ["spec.replicas", "-1", "greater than or equal to 0"]),
        ({"training__globalBatchSize": None}, ["spec.training.globalBatchSize", "Required value"]),
        ({"training__learningRate": 0.1}, ["spec.training.learningRate", "string"]),
    ],
)
def test_the_api_server_names_field_and_value_of_what_the_schema_refuses(
    cluster: Cluster, changes: dict[str, Any], words: list[str]
) -> None:
    refusal = _refusal(cluster, "default", _resource(make_spec(**changes)))

    for word in words:
        assert word in refusal


@pytest.mark.cluster
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize(
    ("name", "words"), [("a" * 57, "shorten it to at most 56"), ("a.b", "write a dash instead")]
)
def test_a_name_that_pods_cannot_have_is_refused(cluster: Cluster, name: str, words: str) -> None:
    resource = _resource(make_spec()).replace("name: a\n", f"name: {name}\n")

    assert words in _refusal(cluster, "default", resource)


@pytest.mark.cluster
@pytest.mark.usefixtures("crd")
def test_data_cannot_be_changed(cluster: Cluster, namespace: str) -> None:
    cluster.run(
        "kubectl",
        "create",
        f"--namespace={namespace}",
        "--filename=-",
        stdin=_resource(make_spec(suspend=True)),
    )
    changed = _resource(make_spec(suspend=True, data__text__path="/other/*.txt"))

    with pytest.raises(ToolError) as caught:
        cluster.run("kubectl", "replace", f"--namespace={namespace}", "--filename=-", stdin=changed)

    assert "data cannot be changed; create a new ModelScaling" in str(caught.value)


@pytest.mark.cluster
@pytest.mark.usefixtures("crd")
def test_kubectl_scale_changes_the_replicas(cluster: Cluster, namespace: str) -> None:
    cluster.run(
        "kubectl",
        "create",
        f"--namespace={namespace}",
        "--filename=-",
        stdin=_resource(make_spec(suspend=True)),
    )

    cluster.run("kubectl", "scale", "msc/a", "--replicas=4", f"--namespace={namespace}")

    assert cluster.get("msc", "a", f"--namespace={namespace}")["spec"]["replicas"] == 4


def test_text_that_other_parsers_read_as_a_number_is_quoted() -> None:
    assert "default: '3e-4'" in render()
