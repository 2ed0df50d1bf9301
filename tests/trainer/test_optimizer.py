from __future__ import annotations

import torch

from modelscaling_trainer.optimizer import AdamW
from tests.trainer.decoders import make_decoder, whole_weights
from tests.trainer.runs import make_run

RUN = make_run("unused", optimizer__weight_decay=0.5)


def make_weights() -> dict[str, torch.Tensor]:
    decoder = make_decoder(RUN.model)
    return {name: shard.tensor for name, shard in whole_weights(decoder).items()}


def make_gradient(weights: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Return draws that are the same for the same number."""
    draw = torch.Generator().manual_seed(number)
    return {name: torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}


def test_only_matrices_decay() -> None:
    weights = make_weights()
    optimizer = AdamW(weights, RUN.optimizer)
    optimizer.learning_rate = 0.1
    before = {name: weight.clone() for name, weight in weights.items()}
    optimizer.step({name: torch.zeros_like(weight) for name, weight in weights.items()})

    for name, weight in weights.items():
        factor = 0.95 if weight.ndim > 1 else 1.0
        assert torch.allclose(before[name] * factor, weight, rtol=1e-6), name


def test_moments_and_steps_set_from_outside_continue_the_course() -> None:
    straight = make_weights()
    straight_optimizer = AdamW(straight, RUN.optimizer)
    for number in range(3):
        straight_optimizer.step(make_gradient(straight, number))
    resumed = {name: weight.clone() for name, weight in straight.items()}
    optimizer = AdamW(resumed, RUN.optimizer)
    for moment, tensors in optimizer.moments().items():
        for name, tensor in tensors.items():
            tensor.copy_(straight_optimizer.moments()[moment][name])
    optimizer.set_steps(3)
    for number in range(3, 5):
        straight_optimizer.step(make_gradient(straight, number))
        optimizer.step(make_gradient(resumed, number))

    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_step_is_the_one_that_torch_takes() -> None:
    ours, theirs = make_weights(), make_weights()
    optimizer = AdamW(ours, RUN.optimizer)
    matrices = [weight for weight in theirs.values() if weight.ndim > 1]
    norms = [weight for weight in theirs.values() if weight.ndim == 1]
    reference = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": RUN.optimizer.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=RUN.optimizer.learning_rate,
        betas=(RUN.optimizer.beta1, RUN.optimizer.beta2),
        eps=RUN.optimizer.epsilon,
        fused=True,
    )
    for number in range(3):
        optimizer.step(make_gradient(ours, number))
        for name, gradient in make_gradient(theirs, number).items():
            theirs[name].grad = gradient
        reference.step()

    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_a_stage_without_layers_and_norms_has_nothing_to_decay_less() -> None:
    weights = {"embed_tokens.weight": torch.ones(4, 2)}
    AdamW(weights, RUN.optimizer).step({"embed_tokens.weight": torch.ones(4, 2)})

    assert (weights["embed_tokens.weight"] < 1.0).all()


def test_frozen_weights_neither_move_nor_decay_nor_need_a_gradient() -> None:
    weights = make_weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    run = make_run("unused", optimizer__weight_decay=0.5, optimizer__freeze=("layers.0.*",))
    gradient = make_gradient(weights, 0)
    trained = {name: part for name, part in gradient.items() if not name.startswith("layers.0.")}

    optimizer = AdamW(weights, run.optimizer)
    optimizer.step(trained)

    moved = {name for name, weight in weights.items() if not torch.equal(before[name], weight)}
    assert moved == trained.keys()
    assert optimizer.moments()["exp_avg"].keys() == weights.keys()


def test_a_factor_on_the_learning_rate_is_a_learning_rate() -> None:
    weights, whole, half = make_weights(), make_weights(), make_weights()
    factors = {name: 0.5 if name.startswith("layers.0.") else 1.0 for name in weights}
    optimizer = AdamW(weights, RUN.optimizer, factors=factors)
    others = AdamW(whole, RUN.optimizer), AdamW(half, RUN.optimizer)
    for number in range(3):
        optimizer.learning_rate, others[0].learning_rate, others[1].learning_rate = 0.1, 0.1, 0.05
        for each in (optimizer, *others):
            each.step(make_gradient(weights, number))

    for name, weight in weights.items():
        expected = half if name.startswith("layers.0.") else whole
        assert torch.equal(weight, expected[name]), name
    assert not torch.equal(
        half["layers.0.mlp.up_proj.weight"], whole["layers.0.mlp.up_proj.weight"]
    )
