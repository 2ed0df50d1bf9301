from __future__ import annotations

import torch

from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.initial_weights import set_initial_weights
from modelscaling_trainer.optimizer import AdamW
from tests.trainer.runs import make_run

RUN = make_run("unused", optimizer__weight_decay=0.5)


def make_model() -> Decoder:
    model = Decoder(RUN.model, compute_dtype=torch.float32)
    set_initial_weights(model, seed=0, layers=RUN.model.layers)
    return model


def test_only_matrices_decay() -> None:
    model = make_model()
    optimizer = AdamW(model.parameters(), RUN.optimizer)
    optimizer.learning_rate = 0.1
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        assert torch.allclose(before[name] * factor, parameter, rtol=1e-6), name


def test_moments_and_steps_set_from_outside_continue_the_course() -> None:
    def steps(model: Decoder, optimizer: AdamW, numbers: range) -> None:
        for number in numbers:
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * number + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    straight, resumed = make_model(), make_model()
    straight_optimizer = AdamW(straight.parameters(), RUN.optimizer)
    steps(straight, straight_optimizer, range(3))
    optimizer = AdamW(resumed.parameters(), RUN.optimizer)
    resumed.load_state_dict(straight.state_dict())
    for name, moment in optimizer.moments(resumed).items():
        moment.copy_(straight_optimizer.moments(straight)[name])
    optimizer.set_steps(3)
    steps(straight, straight_optimizer, range(3, 5))
    steps(resumed, optimizer, range(3, 5))

    for expected, actual in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_a_step_is_the_one_that_torch_takes() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = AdamW(ours.parameters(), RUN.optimizer)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    norms = [p for p in theirs.parameters() if p.ndim == 1]
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
        for index, (mine, other) in enumerate(
            zip(ours.parameters(), theirs.parameters(), strict=True)
        ):
            generator = torch.Generator().manual_seed(100 * number + index)
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        reference.step()

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
