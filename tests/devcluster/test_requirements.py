from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from devcluster import requirements
from devcluster.errors import ClusterError
from devcluster.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


def test_who_is_not_root_is_pointed_to_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(ClusterError, match=r"root.*KUBECONFIG"):
        requirements.check_machine()


def test_another_system_is_pointed_to_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(ClusterError, match=r"Linux.*KUBECONFIG"):
        requirements.check_machine()


def test_a_missing_command_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ip" else name)

    with pytest.raises(ClusterError, match="install iproute2"):
        requirements.check_machine()


def test_a_machine_without_go_and_uv_is_told_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(ClusterError, match="https://go"):
        requirements.ensure_go(Layout(tmp_path))
