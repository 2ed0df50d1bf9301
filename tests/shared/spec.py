"""Specs for tests: a small legal one, and changes to it by dotted path."""

from __future__ import annotations

import copy
from typing import Any

import pytest

_SMALL: dict[str, Any] = {
    "model": {
        "layers": 2,
        "hiddenSize": 64,
        "heads": 4,
        "feedForwardSize": 128,
        "contextLength": 64,
    },
    "data": {"text": {"path": "/data/*.txt"}},
    "training": {"tokens": "64k", "globalBatchSize": 8},
}


def make_spec(**changes: Any) -> dict[str, Any]:
    """Return the small spec with changes such as `model__heads=3`; None removes the field."""
    spec = copy.deepcopy(_SMALL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        level = spec
        for parent in parents:
            level = level.setdefault(parent, {})
        if value is None:
            level.pop(last, None)
        else:
            level[last] = value
    return spec


BROKEN_RULES = [
    pytest.param(
        {"model__kvHeads": 3},
        "spec.model.kvHeads",
        "heads=4 is not divisible by kvHeads=3; set kvHeads to a divisor of 4",
        id="heads not divisible by kvHeads",
    ),
    pytest.param(
        {"model__heads": 5},
        "spec.model.hiddenSize",
        "hiddenSize=64 is not divisible by heads=5; set heads to a divisor of 64, or set headSize",
        id="hiddenSize not divisible by heads",
    ),
    pytest.param(
        {"model__hiddenSize": 60},
        "spec.model.hiddenSize",
        "hiddenSize=60 / heads=4 is an odd head size; rotary embeddings turn pairs of "
        "elements, change either",
        id="an odd head size by division",
    ),
    pytest.param(
        {"model__headSize": 33},
        "spec.model.headSize",
        "headSize=33 is odd; rotary embeddings turn pairs of elements, make it even",
        id="an odd head size by name",
    ),
    pytest.param(
        {"model__layers": None},
        "spec.model",
        "model needs a size; set preset, or parameters, or all of layers, hiddenSize, heads and "
        "feedForwardSize",
        id="no size",
    ),
    pytest.param(
        {"model__parameters": "20M"},
        "spec.model.parameters",
        "parameters=20M decides the size alone; remove preset, layers, hiddenSize, heads, "
        "kvHeads, headSize and feedForwardSize, or remove parameters",
        id="a wish for a size beside a shape",
    ),
    pytest.param(
        {"model": {"parameters": "20X"}},
        "spec.model.parameters",
        "parameters=20X is not a quantity; write a positive integer or a number with the suffix "
        "k, M, B or T, such as 200M",
        id="a size with an unknown suffix",
    ),
    pytest.param(
        {"training__tokens": "200X"},
        "spec.training.tokens",
        "tokens=200X is not a quantity; write a positive integer or a number with the suffix "
        "k, M, B or T, such as 200M",
        id="a quantity with an unknown suffix",
    ),
    pytest.param(
        {"training__tokens": 0},
        "spec.training.tokens",
        "tokens=0 is not a quantity; write a positive integer or a number with the suffix "
        "k, M, B or T, such as 200M",
        id="no tokens",
    ),
    pytest.param(
        {"training__learningRate": "0.0"},
        "spec.training.learningRate",
        'learningRate=0.0 must be above 0, such as "3e-4"',
        id="a learning rate of zero",
    ),
    pytest.param(
        {"training__learningRateFactors": [{"layerDecay": "0.9"}, {"weights": "norm.*"}]},
        "spec.training.learningRateFactors[1].weights",
        "weights=norm.* has neither factor nor layerDecay, so its rate would be as it is; give one",
        id="a learning rate that is as it is",
    ),
    pytest.param(
        {"training__learningRateFactors": [{"factor": "0"}]},
        "spec.training.learningRateFactors[0].factor",
        "factor=0 must be above 0; put weights that are to stay as they are into training.freeze",
        id="a factor that freezes",
    ),
    pytest.param(
        {"training__learningRateFactors": [{"layerDecay": "1.1"}]},
        "spec.training.learningRateFactors[0].layerDecay",
        'layerDecay=1.1 must be above 0 and at most 1, such as "0.9"',
        id="learning rates that rise towards the input",
    ),
    pytest.param(
        {"training__microBatchSize": 3},
        "spec.training.microBatchSize",
        "globalBatchSize=8 is not divisible by microBatchSize=3; set microBatchSize to a divisor",
        id="a micro batch that does not divide",
    ),
    pytest.param(
        {"data__validationFraction": "0.9"},
        "spec.data.validationFraction",
        "validationFraction=0.9 is above 0.5; the held-out part must leave most of the data "
        "to train on",
        id="almost all held out",
    ),
    pytest.param(
        {"parallelism": {"dataReplicate": 2}},
        "spec.parallelism.dataReplicate",
        "dataReplicate=2 is given but strategy is Auto; set strategy to Custom, or remove "
        "dataReplicate",
        id="an axis without Custom",
    ),
    *(
        pytest.param(
            {"parallelism": {field: 2}},
            f"spec.parallelism.{field}",
            f"{field}=2 is given but strategy is Auto; set strategy to Custom, or remove {field}",
            id=f"{field} without Custom",
        )
        for field in ("dataShard", "tensor", "pipeline", "context", "stagesPerProcess")
    ),
    pytest.param(
        {"replicas": 3, "parallelism": {"strategy": "Custom", "dataReplicate": 2}},
        "spec.parallelism",
        "dataReplicate=2 × pipeline=1 × context=1 × tensor=1 must divide replicas=3 × "
        "processesPerReplica=1; change one",
        id="copies that the processes do not divide into",
    ),
    pytest.param(
        {"replicas": 3, "parallelism": {"strategy": "Custom", "dataShard": 2, "pipeline": 2}},
        "spec.parallelism",
        "dataShard=2 × pipeline=2 × context=1 × tensor=1 must divide replicas=3 × "
        "processesPerReplica=1; change one",
        id="shards and stages that the processes do not divide into",
    ),
    pytest.param(
        {"replicas": 3, "parallelism": {"strategy": "Custom", "pipeline": 2}},
        "spec.parallelism",
        "pipeline=2 × context=1 × tensor=1 must divide replicas=3 × processesPerReplica=1; "
        "change one",
        id="stages that the processes do not divide into",
    ),
    pytest.param(
        {
            "replicas": 4,
            "parallelism": {"strategy": "Custom", "dataReplicate": 2, "dataShard": 1},
        },
        "spec.parallelism",
        "dataReplicate=2 × dataShard=1 × pipeline=1 × context=1 × tensor=1 must equal replicas=4 "
        "× processesPerReplica=1; change one, or remove dataShard to let it follow",
        id="two data axes that leave processes over",
    ),
    pytest.param(
        {"replicas": 2, "parallelism": {"strategy": "Custom", "tensor": 2}},
        "spec.parallelism.tensor",
        "tensor=2 does not divide processesPerReplica=1, so it would reach across pods; set "
        "tensor to a divisor of 1, or tensorPlacement to AcrossPods",
        id="tensor across pods without the field that allows it",
    ),
    pytest.param(
        {"parallelism": {"strategy": "Custom", "stagesPerProcess": 2}},
        "spec.parallelism.stagesPerProcess",
        "stagesPerProcess=2 interleaves the stages of a pipeline, and pipeline=1; set pipeline "
        "to at least 2, or stagesPerProcess to 1",
        id="interleaved stages without a pipeline",
    ),
    pytest.param(
        {
            "training__earlyStopping": {"patience": 3},
            "training__validateEverySteps": 0,
            "checkpoint": {"volume": {"emptyDir": {}}},
        },
        "spec.training.earlyStopping",
        "earlyStopping with patience=3 waits for validations, and validateEverySteps=0 never "
        "validates; set it to at least 1, or remove earlyStopping",
        id="early stopping without validations",
    ),
    pytest.param(
        {"training__earlyStopping": {"patience": 3}},
        "spec.training.earlyStopping",
        "earlyStopping with patience=3 keeps the best checkpoint, and there is no "
        "checkpoint.volume for one; give spec.checkpoint, or remove earlyStopping",
        id="early stopping without checkpoints",
    ),
    pytest.param(
        {
            "training__earlyStopping": {"patience": 3},
            "data__validationFraction": "0",
            "checkpoint": {"volume": {"emptyDir": {}}},
        },
        "spec.training.earlyStopping",
        "earlyStopping needs held-out data, and validationFraction=0 holds none out; set it above "
        '0, such as "0.02", or remove earlyStopping',
        id="early stopping without held-out data",
    ),
    pytest.param(
        {"model__growth": {"mode": "Forbid", "schedule": [{"tokens": "32k", "layers": 4}]}},
        "spec.model.growth.schedule",
        "schedule grows the model and mode=Forbid keeps its shape; set mode to Preserve, or remove "
        "schedule",
        id="a schedule of what is forbidden",
    ),
    pytest.param(
        {"model__growth": {"mode": "Forbid", "tolerance": "0.1"}},
        "spec.model.growth.tolerance",
        "tolerance=0.1 is never looked at, as nothing grows with mode Forbid; remove it, or set "
        "mode to Preserve or Stack",
        id="a tolerance of growth that is forbidden",
    ),
    pytest.param(
        {"model__growth": {"tolerance": "0.1"}, "data__validationFraction": "0"},
        "spec.model.growth.tolerance",
        "tolerance=0.1 is for the loss of held-out data, and validationFraction=0 holds none out; "
        'remove it, or create a new ModelScaling with validationFraction above 0, such as "0.02"',
        id="a tolerance without held-out data",
    ),
    pytest.param(
        {"model__lora": {"rank": 4}},
        "spec.model.lora",
        "lora of rank=4 trains beside weights that stay as they are, and without initFrom these "
        "would be draws; give initFrom, or remove lora",
        id="adapters of draws",
    ),
    pytest.param(
        {"model__lora": {"alpha": "0"}, "model__initFrom": {"checkpoint": {"path": "/a"}}},
        "spec.model.lora.alpha",
        'alpha=0 must be above 0, such as "16"',
        id="adapters that add nothing",
    ),
    pytest.param(
        {"model__initFrom": {}},
        "spec.model.initFrom",
        "initFrom takes exactly one of huggingFace, checkpoint and modelScaling; give one",
        id="a start from no weights",
    ),
    pytest.param(
        {"model__initFrom": {"huggingFace": {"path": "/a"}, "checkpoint": {"path": "/b"}}},
        "spec.model.initFrom",
        "initFrom takes exactly one of huggingFace, checkpoint and modelScaling; give one",
        id="a start from two models",
    ),
    pytest.param(
        {"model__initFrom": {"modelScaling": {"name": "small"}}},
        "spec.model.initFrom.modelScaling",
        "modelScaling small is read from the volume that both runs save to; give spec.checkpoint "
        "with the volume of small",
        id="a start from a run without a volume",
    ),
]
"""Changes to the small spec that each break one CEL rule; the field and the message."""
