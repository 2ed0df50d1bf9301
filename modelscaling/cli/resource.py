"""Files with Kubernetes resources: reading them, and checking a ModelScaling as a whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from modelscaling.api.modelscaling import API_VERSION, KIND, NAME_MAX_LENGTH
from modelscaling.api.validation import InvalidSpecError, Problem, parse_spec
from modelscaling.cli.error import UsageError

if TYPE_CHECKING:
    from modelscaling.api.modelscaling import ModelScalingSpec

_STANDARD_INPUT = "-"
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A ModelScaling that is right in itself."""

    name: str
    spec: ModelScalingSpec


def read_documents(file: str) -> list[Mapping[str, Any]]:
    """Return the documents of a YAML file, `-` for standard input.

    Raises:
        UsageError: it cannot be read, or is not YAML with one mapping a document.
    """
    try:
        text = sys.stdin.read() if file == _STANDARD_INPUT else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{file}: cannot be read: {reason}") from None
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    for document in documents:
        if not isinstance(document, Mapping):
            raise UsageError(
                f"{file}: {document!r} is not a resource; expected apiVersion, kind, metadata, spec"
            )
    return documents


def model_scalings(file: str, documents: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the ModelScalings among the documents; other kinds are not ours to judge.

    Raises:
        UsageError: there is none.
    """
    found = [document for document in documents if document.get("kind") == KIND]
    if not found:
        kinds = ", ".join(str(document.get("kind")) for document in documents) or "nothing"
        raise UsageError(f"{file}: has no ModelScaling but {kinds}; add one with kind: {KIND}")
    return found


def parse_resource(document: Mapping[str, Any]) -> Resource:
    """Return a document as a typed resource.

    Raises:
        InvalidSpecError: something in it is wrong; carries every problem that was found.
    """
    problems = [*_envelope_problems(document)]
    spec = document.get("spec")
    if not isinstance(spec, Mapping):
        problems.append(Problem(field="spec", message="is required; set model, data and training"))
        raise InvalidSpecError(problems)
    try:
        parsed = parse_spec(spec)
    except InvalidSpecError as error:
        raise InvalidSpecError([*problems, *error.problems]) from None
    if problems:
        raise InvalidSpecError(problems)
    return Resource(name=document["metadata"]["name"], spec=parsed)


def name_of(document: Mapping[str, Any]) -> str:
    """Return what to call a document in a message, also where it has no name."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return str(name or "(no name)")


def _envelope_problems(document: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong outside of the spec."""
    problems = []
    version = document.get("apiVersion")
    if version != API_VERSION:
        problems.append(
            Problem(
                field="apiVersion", message=f"{version!r} is not known; set it to {API_VERSION}"
            )
        )
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not name:
        problems.append(Problem(field="metadata.name", message="is required; set it"))
    elif len(name) > NAME_MAX_LENGTH:
        problems.append(
            Problem(
                field="metadata.name",
                message=(
                    f"{name} has {len(name)} characters; pods are named NAME-INDEX, shorten it to "
                    f"at most {NAME_MAX_LENGTH}"
                ),
            )
        )
    elif not _DNS_LABEL.fullmatch(name):
        problems.append(
            Problem(
                field="metadata.name",
                message=(
                    f"{name!r} cannot name pods; use lower-case letters, digits and '-', with a "
                    f"letter or digit at both ends"
                ),
            )
        )
    return problems
