from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelscaling.layout import weights
from modelscaling.preset import PRESETS
from tests.trainer.families import make_transformers_model, their_name


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_weights_of_the_model_that_transformers_makes_of_it(preset: str) -> None:
    shape = replace(PRESETS[preset], layers=2)  # all layers are alike
    with torch.device("meta"):
        model = make_transformers_model(shape)

    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {their_name(name): size for name, size in weights(shape).items()} == theirs
