"""What pods rely on is there before them, whatever the API server refuses."""

from __future__ import annotations

import pytest

from modelscaling_operator.kube import Kube, UnavailableError
from modelscaling_operator.run_objects import RunObjects
from modelscaling_operator.wish import Wish, resolve_wish
from tests.operator.fake_api import FakeApi, status_answer
from tests.operator.world import RUN
from tests.shared.spec import make_spec


@pytest.fixture
def wish() -> Wish:
    resolved = resolve_wish(RUN, make_spec(replicas=1))
    assert isinstance(resolved, Wish)
    return resolved


async def create(objects: RunObjects, wish: Wish) -> None:
    await objects.create_pods(wish, (0,), image="trainer:1", pull_policy="Never")


def writes(api: FakeApi) -> list[str]:
    """Return the kinds that requests were to write."""
    return sorted(path.split("/")[5] for method, path, _ in api.requests if method != "GET")


async def test_what_is_refused_holds_back_the_pods_and_nothing_else(
    api: FakeApi, kube: Kube, wish: Wish
) -> None:
    api.answers = [status_answer(503, "busy")]

    with pytest.raises(UnavailableError, match="busy"):
        await create(RunObjects(kube, RUN), wish)

    assert len(api.objects) == 2
    assert not any("/pods/" in path for path in api.objects)


async def test_the_next_try_goes_on_from_what_the_one_before_has_made(
    api: FakeApi, kube: Kube, wish: Wish
) -> None:
    objects = RunObjects(kube, RUN)
    api.answers = [status_answer(503, "busy")]
    with pytest.raises(UnavailableError):
        await create(objects, wish)
    api.requests.clear()

    await create(objects, wish)

    assert len(writes(api)) == 2
    assert "pods" in writes(api)
    assert len(api.objects) == 4


async def test_what_was_made_long_ago_may_be_gone_and_is_made_again(
    api: FakeApi, kube: Kube, wish: Wish
) -> None:
    now = 0.0
    objects = RunObjects(kube, RUN, clock=lambda: now)
    await create(objects, wish)
    key = await objects.key()
    api.objects.clear()
    api.requests.clear()
    now = 30.0

    await create(objects, wish)

    assert writes(api) == ["configmaps", "pods", "secrets", "services"]
    assert await RunObjects(kube, RUN).key() == key


async def test_a_pod_is_known_before_the_watch_tells_of_it(kube: Kube, wish: Wish) -> None:
    objects = RunObjects(kube, RUN)
    await create(objects, wish)

    [pod] = objects.with_created([])
    assert (pod.index, pod.image) == (0, "trainer:1")

    # The watch has told: what it says holds from now on, also that the pod is gone.
    assert objects.with_created([pod]) == (pod,)
    assert objects.with_created([]) == ()


async def test_a_pod_that_the_watch_never_tells_of_is_not_believed_in_for_ever(
    kube: Kube, wish: Wish
) -> None:
    now = 0.0
    objects = RunObjects(kube, RUN, clock=lambda: now)
    await create(objects, wish)
    now = 30.0

    assert objects.with_created([]) == ()


async def test_another_configuration_is_written_at_once(
    api: FakeApi, kube: Kube, wish: Wish
) -> None:
    objects = RunObjects(kube, RUN)
    await create(objects, wish)
    other = resolve_wish(RUN, make_spec(replicas=1, training__learningRate="1e-4"))
    assert isinstance(other, Wish)
    api.requests.clear()

    await create(objects, other)

    assert writes(api) == ["configmaps", "pods"]
