"""What to do next: one situation, one piece of advice, with a command that can be copied."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from stages.configuration.overrides import combinations
from stages.measurement import chance
from stages.report.advice import Advice, Facts, advice, lines
from stages.report.choice import Candidate, Loss
from stages.report.facts import CHANCE, facts
from tests import built
from tests.report.pages import edit, primary
from tests.report.test_choice import metric

FAST = {"median": 1.4, "low": 1.35, "high": 1.45}
FACTS = Facts(
    model=Candidate("INT8", (Loss("top_1", metric(0.002, -0.003, 0.007), 0.01, 1000),), FAST),
    path="build/correct_bias/model.xml",
    default="bf16",
    smaller=3.4,
    preset="performance",
    budget=None,
    tuned=False,
    at_chance=False,
    saturates=False,
    saturation_fix="first_layer",
    faulty_layer=None,
    one_shape={},
    shape_operations={},
)
BEYOND = metric(0.031, 0.017, 0.045)


def given(drop: dict[str, Any] | None = None, ratio: dict[str, float] | None = None, samples: int = 1000, **more: Any) -> list[Advice]:
    """The advice where a drop, a speed-up or other facts are different."""
    model = FACTS.model
    if drop is not None:
        model = dataclasses.replace(model, losses=(Loss("top_1", drop, 0.01, samples),))
    if ratio is not None:
        model = dataclasses.replace(model, ratio=ratio)
    return advice(dataclasses.replace(FACTS, model=model, **more))


def test_a_good_model_is_deployed() -> None:
    (only,) = given()
    assert only.text == (
        "deploy build/correct_bias/model.xml: 1.40x faster than FP32 in bf16 [1.35, 1.45];"
        " no clear drop of top_1: 0.20 points [-0.30, 0.70], 1.00 allowed"
    )
    assert only.command == "python -m stages.package"


def test_lost_accuracy_has_remedies() -> None:
    first, preset, revert = given(BEYOND)
    assert first.text == ("do not deploy INT8 yet: top_1 drops by 3.10 points [1.70, 4.50], 1.00 allowed (accuracy_aware.maximal_drop)")
    assert "`mixed`" in preset.text and preset.command == "python -m stages.sweep -m quantization.preset=performance,mixed"
    assert revert.command == "python -m stages.sweep -m accuracy_aware.enabled=true"
    # What has been tried is not advised again.
    (_, again) = given(BEYOND, preset="mixed", budget=False)
    assert again.text.startswith("allow more, or calibrate on more") and not again.command


def test_a_model_that_the_device_computes_wrongly_is_not_deployed() -> None:
    wrong = dataclasses.replace(FACTS.model, faulty=True)
    first = advice(dataclasses.replace(FACTS, model=wrong, faulty_layer="conv"))[0]
    assert first.text == "do not deploy INT8 yet: the device does not compute what it says"


def test_a_drop_that_is_mostly_the_default_precisions() -> None:
    steps = given(BEYOND | {"precision_drop": 0.028, "precision_drop_low": 0.015})
    assert steps[1].text.startswith("compute in f32 what stays float: 2.80 of the 3.10 points of top_1 are bf16's")
    assert steps[1].command == "python -m stages.sweep -m engine.inference_precision=default,f32"
    assert len(given(BEYOND | {"precision_drop": 0.014, "precision_drop_low": 0.002})) == 3  # less than half
    assert len(given(BEYOND | {"precision_drop": 0.028, "precision_drop_low": -0.001})) == 3  # not clear


@pytest.mark.parametrize("ratio", [{"median": 1.01, "low": 0.97, "high": 1.04}, {"median": 0.8, "low": 0.75, "high": 0.85}])
def test_no_gain_is_said_and_fp32_shipped(ratio: dict[str, float]) -> None:
    (only,) = given(None, ratio)
    assert only.text.startswith("ship FP32 in bf16, build/prepare/model.xml, or let `tune` look for a faster model: INT8 is ")
    assert ("no different from FP32 in bf16" in only.text) == (ratio["median"] > 1)
    assert only.text.endswith("it is worth its 3.4x smaller files only where those count")
    (lossy,) = given(BEYOND, ratio)
    assert lossy.text.endswith(" here, and top_1 drops by 3.10 points [1.70, 4.50]")
    assert only.command == "python -m stages.sweep -m tune.enabled=true"
    (tuned,) = given(None, ratio, tuned=True)
    assert "let `tune`" not in tuned.text and not tuned.command


def test_too_few_samples_to_tell() -> None:
    deploy, more = given(metric(0.02, -0.05, 0.09), samples=40)
    assert deploy.text.endswith("no clear drop of top_1: 2.00 points [-5.00, 9.00], which 40 samples cannot tell from none")
    # 14 points wide on 40 samples: 1 point wide on 14 * 14 times as many.
    assert more.text.startswith("validate on more samples, about 7900: 40 cannot tell whether top_1 keeps the budget of 1.00 points")
    assert "[-5.00, 9.00]" in more.text


def test_sums_that_saturate() -> None:
    assert given(saturates=True)[1].command == "python -m stages.sweep -m quantization.saturation_fix=first_layer,all"
    assert "VNNI" in given(saturates=True, saturation_fix="all")[1].text


def test_a_layer_that_the_device_computes_wrongly() -> None:
    command = given(faulty_layer="/head/Mul [x], y")[1].command
    assert shlex.split(command)[-1] == 'quantization.ignored.scope=["/head/Mul [x], y"]'


def test_open_sizes_that_never_change() -> None:
    shapes = {"x": [1, 3, 48, 320], "a.b/c:0": [1, 4]}
    step = given(one_shape=shapes, shape_operations={"ShapeOf": 36, "Broadcast": 18})[1]
    assert "all samples have one, and the model leaves it open, which costs 36 ShapeOf and 18 Broadcast operations" in step.text
    assert shlex.split(step.command)[-1] == "model.input_shape={x: [1, 3, 48, 320], a.b/c\\:0: [1, 4]}"
    assert "which often makes" in given(one_shape=shapes, shape_operations={"ShapeOf": 0, "Broadcast": 0})[1].text


def test_a_model_that_guesses_gives_no_advice_on_quantization() -> None:
    (only,) = given(BEYOND, at_chance=True)
    assert only.text.startswith("make FP32's own number right")
    assert CHANCE in chance.ADVICE


def test_a_distance_without_labels_is_no_judgement() -> None:
    distance = metric(0.04, 0.03, 0.05, higher_is_better=False, share=False, fp32=0.0)
    model = dataclasses.replace(FACTS.model, losses=(Loss("error", distance, None, 100),))
    (only,) = advice(dataclasses.replace(FACTS, model=model))
    assert only.text.startswith(
        "INT8 is 1.40x faster than FP32 in bf16 [1.35, 1.45]; whether error rises by 0.04 [0.03, 0.05] hurts, no label says"
    )


def test_lines_for_a_terminal() -> None:
    shown = lines([Advice("word " * 40, "python -m " + "x" * 200)])
    assert shown[0].startswith("next: word") and shown[1].startswith("      word") and max(map(len, shown[:-1])) <= 132
    assert shown[-1] == "      python -m " + "x" * 200


@pytest.mark.usefixtures("project_here")
def test_commands_are_overrides_that_a_sweep_takes() -> None:
    every = [
        *given(BEYOND | {"precision_drop": 0.028, "precision_drop_low": 0.015}),
        *given(None, {"median": 1.0, "low": 0.9, "high": 1.1}),
        *given(saturates=True, one_shape={"x": [1, 3], "a.b/c:0": [1, 4]}),
        *given(faulty_layer="/head/Mul [x], y"),
    ]
    swept = [shlex.split(step.command)[4:] for step in every if " stages.sweep " in step.command]
    assert len(swept) == 7
    for overrides in swept:
        assert combinations(overrides)


@pytest.fixture
def project_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.project import ROOT

    monkeypatch.chdir(ROOT)


# ------------------------------------------------------------------------------------------------ facts


def test_facts_of_the_quantized_model(workspace: Path) -> None:
    found = facts()
    assert (found.model.name, found.path, found.default) == ("INT8", "build/correct_bias/model.xml", "bf16")
    assert [(loss.name, loss.allowed, loss.samples) for loss in found.model.losses] == [("exact_match", 0.01, 1000), ("error", None, 1000)]
    assert found.model.ratio is not None and found.model.ratio["median"] == 1.5
    assert (found.budget, found.tuned, found.at_chance, found.saturates, found.faulty_layer) == (None, False, False, False, None)
    assert round(found.smaller, 2) == 3.52


def test_facts_of_what_the_device_computes(workspace: Path) -> None:
    def finding(instrumented: float, plain: float, **more: Any) -> None:
        compilations = [{"hint": "LATENCY", "instrumented": name, "ratio": ratio} for name, ratio in ((True, instrumented), (False, plain))]
        first = {"layer": "conv", "type": "Convolution", "tensor": "t"}
        fidelity = {"ratio": 9.0, "limit": 2.0, "compilations": compilations, "first": first, "warning": "differs", "saturates": False}
        edit("evaluate/evaluation.json", lambda evaluation: evaluation | {"fidelity": fidelity | more})

    finding(9.0, 0.8)
    assert (facts().faulty_layer, facts().model.faulty) == ("conv", False)  # right as one deploys it
    finding(9.0, 3.0)
    assert facts().model.faulty
    finding(9.0, 3.0, saturates=True)  # always the same, and measured
    assert (facts().saturates, facts().faulty_layer, facts().model.faulty) == (True, None, False)
    finding(0.9, 0.8, warning=None)
    assert (facts().faulty_layer, facts().model.faulty) == (None, False)


def test_facts_of_open_sizes_and_of_chance(workspace: Path) -> None:
    edit("prepare/dataset.json", lambda samples: samples.update(one_shape={"x": [1, 4]}))
    text = '<layer id="1" type="ShapeOf"/><layer type="Broadcast"/><layer name="Broadcast_1" type="Add"/><layer type="ShapeOf"/>'
    (workspace / "build/correct_bias/model.xml").write_text(text)
    assert (facts().one_shape, facts().shape_operations) == ({"x": [1, 4]}, {"ShapeOf": 2, "Broadcast": 1})
    edit("evaluate/evaluation.json", lambda evaluation: evaluation["warnings"].append(f"top_1 of FP32 is 1 %: {chance.ADVICE}"))
    assert facts().at_chance


def test_facts_of_searches(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    found = facts()
    assert (found.path, found.budget, found.model.kept) == ("build/accuracy_aware/model.xml", True, True)
    assert round(found.model.losses[0].drop, 6) == 0.009
    built.write_tune(workspace)
    found = facts()
    assert (found.path, found.tuned) == ("build/tune/model.xml", True)
    # The search's own budget: a share of what FP32 reaches, of its metrics.
    assert [(loss.name, round(loss.allowed or 0, 5)) for loss in found.model.losses] == [("exact_match", 0.00902)]
    built.write_accuracy_aware(workspace, holds=False)
    built.write_tune(workspace, within=False)
    assert (facts().path, facts().budget) == ("build/correct_bias/model.xml", False)


def test_a_search_that_reverts_nothing_has_the_quantized_models_speed(workspace: Path) -> None:
    built.write_accuracy_aware(workspace)
    edit("accuracy_aware/result.json", lambda result: result.update(reverted=[]))
    (workspace / "build/accuracy_aware/latency.json").write_text(json.dumps({}))
    found = facts()
    assert found.model.ratio is not None and found.model.ratio["median"] == 1.5


def test_a_drop_that_no_sample_can_tell(workspace: Path) -> None:
    edit("evaluate/evaluation.json", primary(drop=0.02, drop_low=-0.01, drop_high=0.05))
    assert facts().model.acceptable
