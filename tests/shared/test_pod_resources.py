from __future__ import annotations

from typing import Any

import pytest

from modelscaling.pod_resources import TrainerResources, trainer_resources


def make_template(limits: Any, name: str = "trainer") -> dict[str, Any]:
    return {"spec": {"containers": [{"name": name, "resources": {"limits": limits}}]}}


@pytest.mark.parametrize(
    ("template", "memory", "has_device"),
    [
        pytest.param({}, None, False, id="no template"),
        pytest.param(make_template({"cpu": 2}), None, False, id="no memory limit"),
        pytest.param(make_template({"memory": "4Gi"}), 4 * 2**30, False, id="a CPU's limit"),
        pytest.param(
            make_template({"memory": "4Gi"}, "sidecar"), None, False, id="another container's limit"
        ),
        pytest.param(
            make_template({"memory": 1024, "nvidia.com/gpu": 1}), 1024, True, id="a device"
        ),
        pytest.param(
            make_template({"hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi"}),
            None,
            False,
            id="no device, but other resources",
        ),
        pytest.param(make_template({"memory": "lots"}), None, False, id="no size"),
        pytest.param(make_template({"memory": ["4Gi"]}), None, False, id="no size but a list"),
        pytest.param({"spec": {"containers": "trainer"}}, None, False, id="no containers"),
        pytest.param({"spec": {"containers": ["trainer"]}}, None, False, id="no container"),
        pytest.param({"spec": None}, None, False, id="no spec"),
    ],
)
def test_what_cannot_be_read_is_taken_as_not_said(
    template: dict[str, Any], memory: int | None, *, has_device: bool
) -> None:
    assert trainer_resources(template) == TrainerResources(memory=memory, has_device=has_device)
