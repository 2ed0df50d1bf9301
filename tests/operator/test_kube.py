from __future__ import annotations

import pytest
from aiohttp import web

from modelscaling_operator import kube as kube_module
from modelscaling_operator.kube import (
    LEASE_RULES,
    PODS,
    RULES,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    KubeError,
    NotFoundError,
    TooManyError,
    UnavailableError,
    server_message,
)
from tests.operator.fake_api import FakeApi, status_answer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, InvalidError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, InvalidError),
        (429, TooManyError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_each_answer_has_its_error(
    api: FakeApi, kube: Kube, code: int, kind: type[KubeError]
) -> None:
    api.answers = [status_answer(code, "no: because")]

    with pytest.raises(kind) as error:
        await kube.get(PODS, "a", "b")

    assert server_message(error.value) == "no: because"


async def test_a_pause_that_the_server_asks_for_is_passed_on(api: FakeApi, kube: Kube) -> None:
    answer = status_answer(429, "slow down")
    answer.headers["Retry-After"] = "7"
    api.answers = [answer]

    with pytest.raises(TooManyError) as error:
        await kube.get(PODS, "a", "b")

    assert error.value.retry_after_s == 7
    assert len(api.requests) == 1


async def test_an_answer_that_is_not_json_is_quoted(api: FakeApi, kube: Kube) -> None:
    api.answers = [web.Response(status=502, text="<html>bad gateway")]

    with pytest.raises(UnavailableError, match="<html>bad gateway"):
        await kube.get(PODS, "a", "b")


@pytest.mark.parametrize("text", ["<html>proxy", "null", "[]"])
async def test_a_good_answer_that_is_no_object_is_an_error_as_well(
    api: FakeApi, kube: Kube, text: str
) -> None:
    api.answers = [web.Response(text=text)]

    with pytest.raises(UnavailableError, match="is not the API server"):
        await kube.get(PODS, "a", "b")


async def test_a_failed_create_is_not_sent_twice(api: FakeApi, kube: Kube) -> None:
    api.answers = [status_answer(500, "boom")]

    with pytest.raises(UnavailableError):
        await kube.create(PODS, {"metadata": {"namespace": "a", "name": "b"}})

    assert [method for method, _, _ in api.requests] == ["POST"]


async def test_a_create_asks_for_strict_fields(api: FakeApi, kube: Kube) -> None:
    await kube.create(PODS, {"metadata": {"namespace": "a", "name": "b"}})

    assert api.requests == [
        (
            "POST",
            "/api/v1/namespaces/a/pods",
            {"fieldManager": "modelscaling-operator", "fieldValidation": "Strict"},
        )
    ]


async def test_a_delete_is_of_one_very_object(api: FakeApi, kube: Kube) -> None:
    await kube.create(PODS, {"metadata": {"namespace": "a", "name": "b"}})
    await kube.delete(PODS, "a", "b", uid="u", grace_period_s=0)

    assert api.bodies[-1]["preconditions"] == {"uid": "u"}
    assert api.bodies[-1]["gracePeriodSeconds"] == 0


async def test_a_server_that_does_not_answer_in_time_is_unavailable(
    api: FakeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "REQUEST_TIMEOUT_S", 0.05)
    api.hangs = True

    with pytest.raises(UnavailableError, match="does not answer"):
        await kube.get(PODS, "a", "b")


def test_no_right_is_a_wildcard() -> None:
    for rule in (*RULES, *LEASE_RULES):
        assert "*" not in (rule.group, rule.resource, *rule.verbs)
