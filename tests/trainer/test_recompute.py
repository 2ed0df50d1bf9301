from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelscaling.api.training import ActivationCheckpointing
from modelscaling_trainer.model.recompute import recompute
from tests.trainer.decoders import make_decoder, make_shape

SHAPE = make_shape(layers=4)


class _Made(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the memory that operations have asked for, without holding it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._made[storage.data_ptr()] = (reference, storage.nbytes())
        return out

    def bytes_alive(self) -> int:
        alive = 0
        for storage, size in self._made.values():
            if not storage.expired():  # type: ignore[no-untyped-call]
                alive += size
        return alive


def _train(mode: ActivationCheckpointing) -> tuple[int, list[torch.Tensor]]:
    """Return the bytes that a forward pass leaves behind, and the gradients of the weights."""
    torch.manual_seed(0)
    model = make_decoder(SHAPE, recompute=recompute(mode))
    ids = torch.randint(SHAPE.vocabulary_size, (4, SHAPE.context_length))
    with _Made() as made:
        loss = model.loss_sum(ids, ids.roll(-1, 1))
    kept = made.bytes_alive()
    torch.autograd.backward(loss)
    return kept, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", [ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL])
def test_what_is_computed_again_gives_the_same_gradient_bit_for_bit(
    mode: ActivationCheckpointing,
) -> None:
    _, plain = _train(ActivationCheckpointing.NONE)
    _, recomputed = _train(mode)

    assert len(plain) == len(recomputed)
    assert all(map(torch.equal, plain, recomputed))


def test_full_keeps_less_than_selective_and_that_less_than_none() -> None:
    none, selective, full = (
        _train(mode)[0]
        for mode in (
            ActivationCheckpointing.NONE,
            ActivationCheckpointing.SELECTIVE,
            ActivationCheckpointing.FULL,
        )
    )

    assert full < selective < none
