from __future__ import annotations

from modelscaling_trainer.agent.resolver import resolver_environment


def test_a_worker_asks_a_silent_name_server_once_and_for_a_second() -> None:
    assert resolver_environment({"PATH": "/bin"}) == {"RES_OPTIONS": "timeout:1 attempts:1"}


def test_what_the_user_has_set_for_the_resolver_stays() -> None:
    assert resolver_environment({"RES_OPTIONS": "timeout:3"}) == {}
