from __future__ import annotations

import pytest

from modelscaling.api.validation import parse_spec
from modelscaling.mesh import Mesh
from modelscaling.protocol import GroupAssignment, Member, is_signed, sign
from modelscaling.resolve import resolve_configuration
from tests.shared.spec import make_spec

_KEY = b"k" * 32


def _assignment(generation: int = 1, replicas: int = 2) -> GroupAssignment:
    return GroupAssignment(
        run_uid="uid",
        generation=generation,
        members=tuple(Member(index=i, address=f"10.0.0.{i}", processes=1) for i in range(replicas)),
        mesh=Mesh(dataReplicate=replicas),
        configuration=resolve_configuration(parse_spec(make_spec())),
    )


def test_a_signed_request_is_accepted() -> None:
    signature = sign(_KEY, method="POST", path="/v1/group", body=b"{}")

    assert is_signed(_KEY, signature, method="POST", path="/v1/group", body=b"{}")


@pytest.mark.parametrize(
    ("key", "method", "path", "body"),
    [
        pytest.param(b"x" * 32, "POST", "/v1/group", b"{}", id="another run's key"),
        pytest.param(_KEY, "GET", "/v1/group", b"{}", id="another method"),
        pytest.param(_KEY, "POST", "/v1/stop", b"{}", id="another path"),
        pytest.param(_KEY, "POST", "/v1/group", b"{ }", id="another body"),
    ],
)
def test_a_signature_is_for_one_request_of_one_run(
    key: bytes, method: str, path: str, body: bytes
) -> None:
    signature = sign(_KEY, method="POST", path="/v1/group", body=b"{}")

    assert not is_signed(key, signature, method=method, path=path, body=body)


def test_a_request_without_a_signature_is_refused() -> None:
    assert not is_signed(_KEY, None, method="GET", path="/v1/status", body=b"")


def test_the_digest_of_an_assignment_does_not_depend_on_its_number() -> None:
    assert _assignment(1).digest() == _assignment(2).digest()


def test_the_digest_of_an_assignment_does_not_depend_on_what_was_saved() -> None:
    saved = _assignment().model_copy(update={"checkpoint_step": 7})

    assert saved.digest() == _assignment().digest()


def test_the_digest_of_an_assignment_depends_on_its_members() -> None:
    assert _assignment(replicas=1).digest() != _assignment(replicas=2).digest()


def test_an_assignment_survives_json() -> None:
    assignment = _assignment()

    assert GroupAssignment.model_validate_json(assignment.model_dump_json()) == assignment
