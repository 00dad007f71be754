"""How far outputs are from FP32's, how much is measured, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.measurement.written_out import written_out
from stages.quantization.effect import measure as measuring
from stages.quantization.effect.blocks import Block
from stages.quantization.effect.measure import (
    Counts,
    Distance,
    Effects,
    allowed_inferences,
    counts,
    measure,
    noise_of,
    relative_error,
    telling,
)
from stages.runtime.metrics import Accuracy, Metric
from tests.quantization.effect.culprits import perceptron, two_outputs
from tests.quantization.effect.measuring import inputs, made, measured
from tests.quantization.quantizing import infer
from tests.quantization.small import convolution, images, matmul, model, named, parameter, random

FIRST, SECOND, THIRD = (Block((f"{name}/fq",), (name, f"{name}/more"), 1.0) for name in ("a", "b", "c"))


def test_relative_error_is_the_mean_over_outputs_and_absolute_of_nothing() -> None:
    reference = [np.array([3.0, 4.0], np.float32), np.zeros(2, np.float32)]
    assert relative_error([np.array([3.0, 5.0], np.float32), np.zeros(2, np.float32)], reference) == pytest.approx(0.1)
    assert relative_error([reference[0], np.array([0.0, 0.5], np.float32)], reference) == pytest.approx(0.25)
    infinite = [np.array([np.nan, 4.0], np.float32), np.zeros(2, np.float32)]
    assert relative_error(infinite, reference) == measuring.HIGHEST / 2
    assert relative_error([np.zeros(3, np.float32), np.zeros(2, np.float32)], reference) == measuring.HIGHEST / 2  # another shape


@pytest.mark.parametrize(
    ("blocks", "samples", "inferences", "expected"),
    [
        (49, 16, 4000, Counts(16, 49, 10)),  # 59 models on 16 samples: 944
        (49, 16, 480, Counts(8, 49, 10)),  # 59 models on 8: 472
        (49, 16, 200, Counts(4, 49, 1)),  # 50 models on 4 samples, the fewest
        (49, 16, 100, Counts(4, 25, 0)),
        (49, 2, 100, Counts(2, 49, 1)),  # there are no more samples
        (3, 16, 400, Counts(16, 3, 3)),
        (3, 16, 1, Counts(4, 0, 0)),
        (0, 16, 400, Counts(0, 0, 0)),
    ],
)
def test_fewer_samples_first_then_fewer_blocks(blocks: int, samples: int, inferences: int, expected: Counts) -> None:
    assert counts(blocks, samples, inferences) == expected


def test_large_outputs_are_kept_of_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = perceptron()
    result = made(planted.model, planted.samples)

    def run(count: int) -> Effects:
        return measure(result.pair, result.blocks, {}, None, inputs(planted.samples[:count]), schema.Engine(), 400)

    expected = run(3)
    monkeypatch.setattr(measuring, "MEMORY", 3 * 10 * 4 + 1)  # of three samples ten numbers each
    few = run(12)
    assert (few.samples, few.on, few.off) == (3, expected.on, expected.off)


def test_the_limit_follows_the_validation_samples() -> None:
    assert [allowed_inferences(None, count) for count in (10, 100, 1000)] == [400, 400, 4000]
    assert allowed_inferences(7, 1000) == 7


def test_half_of_the_samples_are_those_that_lose_most() -> None:
    losses = np.array([0.0, 0.5, -1.0, 1.0, 0.0, 0.5, 0.1])
    assert telling(losses, 4) == [3, 0, 1, 2]
    assert telling(losses, 6) == [3, 0, 1, 2, 5, 4]
    assert telling(losses, 50) == [3, 0, 1, 2, 5, 4, 6]
    assert telling(np.zeros(3), 2) == [0, 1]  # nothing is lost
    assert telling(np.ones(3), 3) == [0, 1, 2]


def test_noise_of_a_block_is_the_sum_over_its_quantizers() -> None:
    block = Block(("one", "two", "quiet", "unknown"), ("layer",), 1.0)
    assert noise_of([block], {"one": 20.0, "two": 10.0, "quiet": None})[block] == pytest.approx(0.11)


def test_the_noisiest_are_measured_where_not_all_are_and_the_others_have_a_reason() -> None:
    planted = perceptron()
    blocks = made(planted.model, planted.samples).blocks
    noise = {block: float(index) for index, block in enumerate(blocks)}  # the last one is the noisiest
    found = measured(planted.model, planted.samples, noise=noise, inferences=12)
    assert found.effects.samples == 4 and list(found.effects.on) == list(blocks[-3:]) and not found.effects.off
    columns = found.effects.columns(blocks)
    assert columns["layer0"] == {"block": None, "effect_missing": "12 inferences (evaluate.effect_inferences) are used up"}
    assert columns["head"].keys() == {"block", "effect_on", "agreement_on"}
    assert found.effects.summary(blocks) == {
        "samples": 4,
        "blocks": 6,
        "alone": 3,
        "left_out": 0,
        "missing": "12 inferences (evaluate.effect_inferences) are used up",
        "quantized": None,
    }


def test_the_table_says_what_is_won_without_a_block() -> None:
    effects = Effects(8, {FIRST: Distance(0.2, 0.9), SECOND: Distance(0.1, None)}, {FIRST: Distance(0.05, 1.0)}, Distance(0.25, 0.8))
    columns = effects.columns([FIRST, SECOND, THIRD])
    assert columns["a"] == columns["a/more"]  # both layers of the block
    assert columns["a"] == {"block": "a", "effect_on": 0.2, "agreement_on": 0.9, "effect_off": 0.2, "agreement_off": 1.0}
    assert columns["b"] == {"block": "b", "effect_on": 0.1, "agreement_on": None}
    assert columns["c"] == {"block": "c", "effect_missing": None}


def test_agreement_is_the_primary_metrics_with_the_predictions_of_fp32() -> None:
    planted = perceptron()
    found = measured(planted.model, planted.samples, bound(planted.model))
    result = made(planted.model, planted.samples)
    ours, theirs = (
        [int(outputs[0].argmax()) for outputs in infer(tested, planted.samples)]
        for tested in (written_out(result.pair.quantized), planted.model)
    )
    assert found.effects.quantized is not None
    assert found.effects.quantized.agreement == pytest.approx(np.mean(np.equal(ours, theirs)), abs=1e-4)
    assert min(ours) >= 0 and ours != theirs
    first = next(block for block in found.blocks if "layer0" in block.layers)
    assert found.effects.on[first].agreement == 1.0


class Half(Metric):
    """A metric by which not even the same outputs agree fully."""

    uses_reference = True

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        return 0.5 * float(outputs[0].argmax() == target[0].argmax())


def test_fp32_agrees_with_itself() -> None:
    planted = perceptron()
    halves, whole = (measured(planted.model, planted.samples, metric).effects for metric in (Half(), bound(planted.model)))
    assert halves.quantized is not None and halves.quantized == whole.quantized
    assert [distance.agreement for distance in halves.on.values()] == [distance.agreement for distance in whole.on.values()]


def bound(tested: ov.Model) -> Accuracy:
    metric = Accuracy()
    metric.bind(tested)
    return metric


def test_outputs_count_alike_whatever_their_size() -> None:
    planted = two_outputs()
    found = measured(planted.model, planted.samples)
    by_layer = {layer: found.effects.on[block].error for block in found.blocks for layer in block.layers}
    assert by_layer["small1"] > 5 * by_layer["large1"]


def test_outputs_whose_order_may_change_are_compared_before_that() -> None:
    """The best two of ten scores: values and places. Compared are the scores."""
    x = parameter((1, 32))
    scores = matmul(op.relu(matmul(x, random(32, 16, seed=1), "body")), random(16, 10, seed=2), "head")
    best = op.topk(scores, np.int64(2), -1, "max", "value")
    tested = ov.Model([op.result(best.output(0)), op.result(best.output(1))], [x])
    samples = [random(1, 32, seed=seed) for seed in range(6)]
    found = measured(tested, samples)
    plain = measured(model(scores, x), samples)
    assert [found.effects.on[block].error for block in found.blocks] == [plain.effects.on[block].error for block in plain.blocks]


def state() -> ov.Model:
    x = parameter((1, 8))
    variable = "memory"
    before = op.read_value(op.constant(np.zeros((1, 8), np.float32)), variable, ov.Type.f32, ov.PartialShape([1, 8]))
    after = matmul(op.add(x, before), random(8, 8), "layer")
    assigned = op.assign(after, variable)
    return ov.Model([op.result(named(op.tanh(after), "out"))], [assigned], [x])


def test_why_nothing_was_measured() -> None:
    samples = [random(1, 8, seed=seed) for seed in range(3)]
    found = measured(state(), samples)
    assert (found.effects.on, found.effects.reason) == ({}, "the model keeps a state")
    assert found.effects.columns(found.blocks)["layer"]["effect_missing"] == "the model keeps a state"


def test_what_cannot_be_computed_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Exception from src:\nno kernel for that")

    monkeypatch.setattr(measuring, "switched", fails)
    x = parameter()
    tested = model(convolution(x, random(2, 3, 3, 3), "conv"), x)
    result = made(tested, images(3))
    found = measure(result.pair, result.blocks, {}, None, inputs(images(3)), schema.Engine(), 400)
    assert found.reason == "it could not be computed: no kernel for that"
