from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.validation import InvalidSpecError
from modelscaling.cli.error import UsageError
from modelscaling.cli.resource import model_scalings, parse_resource, read_documents
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from pathlib import Path


def make_document(**changes: Any) -> dict[str, Any]:
    """A legal resource with other top-level fields; None removes one."""
    document = {
        "apiVersion": "modelscaling.dev/v1alpha1",
        "kind": "ModelScaling",
        "metadata": {"name": "tiny"},
        "spec": make_spec(),
    } | changes
    return {name: value for name, value in document.items() if value is not None}


def test_a_legal_document_is_a_resource() -> None:
    resource = parse_resource(make_document())

    assert resource.name == "tiny"
    assert resource.spec.model.layers == 2


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            {"apiVersion": "modelscaling.dev/v2"},
            "apiVersion",
            "set it to modelscaling.dev/v1alpha1",
        ),
        ({"apiVersion": None}, "apiVersion", "None is not known"),
        ({"metadata": None}, "metadata.name", "is required"),
        ({"metadata": {"name": ""}}, "metadata.name", "is required"),
        ({"metadata": {"name": "x" * 57}}, "metadata.name", "has 57 characters"),
        ({"metadata": {"name": "Tiny"}}, "metadata.name", "'Tiny' cannot name pods"),
        ({"metadata": {"name": "tiny.one"}}, "metadata.name", "'tiny.one' cannot name pods"),
        ({"metadata": {"name": "tiny-"}}, "metadata.name", "'tiny-' cannot name pods"),
        ({"spec": None}, "spec", "is required"),
        ({"spec": ["model"]}, "spec", "is required"),
        ({"spec": make_spec(model__heads=5)}, "spec.model.hiddenSize", "not divisible by heads=5"),
    ],
)
def test_what_is_wrong_in_a_document_is_named(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_resource(make_document(**changes))

    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in problem.message


@pytest.mark.parametrize("name", ["x" * 56, "a", "0", "a-b-0"])
def test_names_that_can_name_pods_are_legal(name: str) -> None:
    assert parse_resource(make_document(metadata={"name": name})).name == name


def test_all_problems_are_reported_at_once() -> None:
    document = make_document(metadata={}, spec=make_spec(model__kvHeads=3, replicas=-1))

    with pytest.raises(InvalidSpecError) as caught:
        parse_resource(document)

    assert {problem.field for problem in caught.value.problems} == {
        "metadata.name",
        "spec.replicas",
    }


def test_documents_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("kind: Secret\n---\n---\nkind: ModelScaling\n---\nkind: ModelScaling\n")

    documents = read_documents(str(file))

    assert len(documents) == 3
    assert len(model_scalings(str(file), documents)) == 2


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: ModelScaling"))

    assert read_documents("-") == [{"kind": "ModelScaling"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"a: [", "is not YAML", id="no YAML"),
        pytest.param(b"just text", "'just text' is not a resource", id="text"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="not UTF-8"),
    ],
)
def test_a_file_that_is_no_resource_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)

    with pytest.raises(UsageError, match=message):
        read_documents(str(file))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_documents("nowhere.yaml")


def test_a_file_without_a_modelscaling_says_what_it_has() -> None:
    with pytest.raises(UsageError, match="has no ModelScaling but Secret, Pod; add one"):
        model_scalings("run.yaml", [{"kind": "Secret"}, {"kind": "Pod"}])
