"""Importing what a mesh needs before it is needed: torch's parts for it take 4 to 10 s."""

from __future__ import annotations

import importlib
import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh

_TENSOR, _SHARDING, _PIPELINE = (
    f"{__package__}.{name}" for name in ("tensor", "sharded_gradient", "pipeline")
)


def import_for(mesh: Mesh) -> None:
    """Import what training on a mesh needs."""
    for is_needed, module in (
        (mesh.tensor > 1, _TENSOR),
        (mesh.is_sharded, _SHARDING),
        (mesh.pipeline > 1, _PIPELINE),
    ):
        if is_needed:
            importlib.import_module(module)


@cache
def import_rest() -> None:
    """Begin, once, to import what any mesh needs, in the background: a run that is moved to another
    mesh should not stand still for it.
    """
    threading.Thread(target=_import_all, name="import", daemon=True).start()


def _import_all() -> None:
    for module in (_TENSOR, _SHARDING, _PIPELINE):
        importlib.import_module(module)
