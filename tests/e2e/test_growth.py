"""Models that grow while they train, and runs that begin with the weights of others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from modelscaling.protocol import CHECKPOINT_MOUNT
from tests.conftest import ROOT
from tests.e2e.steady import begin, causes, finish, lost_steps, saved, steady_spec, tokens_of
from tests.live_run import LiveRun, condition_of, step_of

if TYPE_CHECKING:
    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]

_WRITE_TOKENIZER = """
from tokenizers import Tokenizer, models, pre_tokenizers
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in printable]
letters = {chr(byte): byte for byte in printable}
letters |= {chr(256 + place): byte for place, byte in enumerate(others)}
tokenizer = Tokenizer(models.BPE(letters, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
tokenizer.save("/models/tokenizer.json")
"""
"""A tokenizer whose ids are the bytes, as byte-level ones write them."""


def _documents(example: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "examples" / example).read_text()))


def _claim(run: LiveRun, name: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    run.kubectl("apply", "--filename=-", stdin=json.dumps(body))


def test_the_example_grows_to_twice_its_layers_and_then_to_twice_its_replicas(
    cluster: Cluster, run_namespace: str
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="grow")
    run.kubectl("apply", f"--filename={ROOT / 'examples/grow.yaml'}")
    small = run.wait_for_step(60)

    run.patch(model={"layers": 8})
    grown = run.wait_for(lambda status: len(status.get("rescales", [])) == 1)
    run.wait_for_step(step_of(grown) + 5)
    run.kubectl("scale", "msc/grow", "--replicas=4")
    scaled = run.wait_for(lambda status: len(status.get("rescales", [])) == 2)
    last = run.wait_for_step(step_of(scaled) + 5)
    table = run.kubectl("get", "msc", "grow")
    run.delete()

    assert causes(last) == ["ModelGrown", "ReplicasChanged"]
    assert lost_steps(last) == 0
    growth, scaling = last["rescales"]
    assert growth["step"] >= step_of(small)
    assert float(growth["lossAfter"]) == pytest.approx(float(growth["lossBefore"]), abs=1e-4)
    assert (scaling["from"], scaling["to"]) == ("dp2", "dp4")
    assert last["model"]["parameters"] > 1.9 * small["model"]["parameters"]
    _, row = table.splitlines()
    assert row.split()[2:5] == [last["model"]["size"], "4", "dp4"]
    assert small["model"]["size"] != last["model"]["size"]


def test_what_cannot_be_grown_is_refused_and_the_run_trains_on(
    cluster: Cluster, run_namespace: str
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="shrinks")
    run.apply(steady_spec())
    before = run.wait_for_step(20)

    run.patch(model={"layers": 1})
    message = run.wait_for_condition("Accepted", "GrowthRefused")
    after = run.wait_for_step(step_of(run.get()["status"]) + 50)
    run.delete()

    assert "spec.model.layers" in message
    assert after["model"] == before["model"]
    assert after.get("rescales", []) == []


def test_growth_that_raises_the_loss_is_taken_back_and_leaves_no_trace(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "jumps", step=300)

    run.patch(model={"layers": 4, "growth": {"mode": "Stack", "tolerance": "0.001"}})
    message = run.wait_for_condition("Accepted", "GrowthRejected")
    run.wait_for(lambda status: causes(status) == ["GrowthRejected"])
    status = finish(run, undisturbed)

    assert "0.0010 more is allowed" in message
    assert causes(status) == ["GrowthRejected"]
    assert lost_steps(status) == 0
    (record,) = status["rescales"]
    assert float(record["lossAfter"]) > float(record["lossBefore"]) + 0.001


def test_a_run_grows_by_its_schedule_without_anybodys_hand(
    cluster: Cluster, run_namespace: str
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="scheduled")
    # The operator, which looks every 2 s, has 300 steps to see that a stage is reached.
    stages = [{"tokens": tokens_of(at), "layers": layers} for at, layers in ((100, 3), (400, 4))]
    growth = {"schedule": stages, "rewarmupSteps": 20}
    run.apply(steady_spec(model__growth=growth, training__tokens=tokens_of(700)))
    status = run.wait_for_state("Complete")
    run.delete()

    assert causes(status) == ["ModelGrown", "ModelGrown"]
    assert lost_steps(status) == 0
    first, second = (record["step"] for record in status["rescales"])
    assert 100 <= first < 400 <= second < 700
    assert status["progress"]["step"] == 700


def test_a_run_awaits_another_and_begins_with_its_weights(
    cluster: Cluster, run_namespace: str, claim: str
) -> None:
    teacher = LiveRun(cluster=cluster, namespace=run_namespace, name="teacher")
    pupil = LiveRun(cluster=cluster, namespace=run_namespace, name="pupil")
    pupil.apply(
        steady_spec(
            model__initFrom={"modelScaling": {"name": "teacher"}},
            model__layers=4,
            replicas=1,
            checkpoint=saved(claim),
            training__tokens=tokens_of(5),
            training__validateEverySteps=5,
        )
    )
    pupil.wait_for_condition("Running", "WaitingForInitFrom")

    teacher.apply(steady_spec(checkpoint=saved(claim), replicas=1, training__tokens=tokens_of(200)))
    taught = teacher.wait_for_state("Complete")
    learned = pupil.wait_for_state("Complete")
    for run in (teacher, pupil):
        run.delete()

    assert learned["initFrom"]["name"] == "teacher"
    assert learned["progress"]["step"] == 5
    # From draws its loss would be ln 256 = 5.5 after so few steps.
    assert float(learned["progress"]["loss"]) < float(taught["progress"]["loss"]) + 0.5 < 5.0
    assert learned["model"]["parameters"] > taught["model"]["parameters"]


def test_the_fine_tuning_examples_go_on_with_a_model_from_hugging_face(
    cluster: Cluster, run_namespace: str, claim: str
) -> None:
    """With a small model in the place of the published one, exported by another run."""
    spec = _example_of_small_model("finetune.yaml", claim)
    source = LiveRun(cluster=cluster, namespace=run_namespace, name="source")
    _claim(source, "models")
    template = json.loads(json.dumps(spec["template"]))
    template["spec"]["volumes"][0]["persistentVolumeClaim"].pop("readOnly")
    template["spec"]["containers"][0]["volumeMounts"][0].pop("readOnly")
    source.apply(steady_spec(checkpoint=saved(claim), replicas=1, template=template))
    source.wait_for(lambda status: status.get("progress", {}).get("checkpointStep") is not None)
    source.kubectl("exec", "source-0", "--", "python", "-c", _WRITE_TOKENIZER)
    source.kubectl(
        *("exec", "source-0", "--", "modelscaling", "export"),
        CHECKPOINT_MOUNT,
        spec["model"]["initFrom"]["huggingFace"]["path"],
        "--tokenizer=/models/tokenizer.json",
    )
    trained = source.get()["status"]["progress"]
    source.delete()

    tuned = LiveRun(cluster=cluster, namespace=run_namespace, name="finetune")
    tuned.apply(spec)
    whole = tuned.wait_for_state("Complete")
    tuned.delete()
    tuned = LiveRun(cluster=cluster, namespace=run_namespace, name="lora")
    tuned.apply(_example_of_small_model("lora.yaml", claim))
    adapters = tuned.wait_for_state("Complete")
    tuned.delete()

    for status in (whole, adapters):
        assert condition_of(status, "Accepted")["status"] == "True"
        assert status["progress"]["step"] == 20
        # From draws it would still be near ln 256 = 5.5; single batches differ by half a nat.
        assert float(status["progress"]["loss"]) < float(trained["loss"]) + 1.0 < 4.5
    assert adapters["model"]["parameters"] == whole["model"]["parameters"]
    assert adapters["model"]["flopsPerToken"] != whole["model"]["flopsPerToken"]


def _example_of_small_model(example: str, claim: str) -> dict[str, Any]:
    """Return the spec of an example of fine-tuning, with 20 steps of a model as is trained here."""
    spec: dict[str, Any] = _documents(example)[-1]["spec"]
    small = steady_spec()["model"]
    kept = {field: spec["model"][field] for field in ("initFrom", "lora") if field in spec["model"]}
    spec["model"] = {**small, "vocabularySize": 256, **kept}
    # A busy machine takes minutes to cut the whole library into ids.
    spec["data"]["text"]["path"] = "/opt/modelscaling/corpus/json/**/*.py"
    spec["training"]["tokens"] = 20 * spec["training"]["globalBatchSize"] * small["contextLength"]
    spec["training"]["validateEverySteps"] = 10
    spec["checkpoint"] = saved(claim)
    return spec
