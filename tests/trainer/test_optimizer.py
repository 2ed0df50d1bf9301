from __future__ import annotations

import torch

from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.initial_weights import set_initial_weights
from modelscaling_trainer.optimizer import (
    make_optimizer,
    moments,
    set_learning_rate,
    set_steps,
)
from tests.trainer.runs import make_run

RUN = make_run("unused", optimizer__weight_decay=0.5)


def make_model() -> Decoder:
    model = Decoder(RUN.model, compute_dtype=torch.float32)
    set_initial_weights(model, seed=0, layers=RUN.model.layers)
    return model


def test_only_matrices_decay() -> None:
    model = make_model()
    optimizer = make_optimizer(model, RUN.optimizer)
    set_learning_rate(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        assert torch.allclose(before[name] * factor, parameter, rtol=1e-6), name


def test_moments_and_steps_set_from_outside_continue_the_course() -> None:
    def steps(model: Decoder, optimizer: torch.optim.AdamW, numbers: range) -> None:
        for number in numbers:
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * number + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    straight, resumed = make_model(), make_model()
    straight_optimizer = make_optimizer(straight, RUN.optimizer)
    steps(straight, straight_optimizer, range(3))
    optimizer = make_optimizer(resumed, RUN.optimizer)
    resumed.load_state_dict(straight.state_dict())
    for name, moment in moments(resumed, optimizer).items():
        moment.copy_(moments(straight, straight_optimizer)[name])
    set_steps(optimizer, 3)
    steps(straight, straight_optimizer, range(3, 5))
    steps(resumed, optimizer, range(3, 5))

    for expected, actual in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)
