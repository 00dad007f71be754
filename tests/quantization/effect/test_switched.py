"""Models in which an input switches blocks compute what models do that are built without, or with only, these blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.measurement.places import compared
from stages.measurement.written_out import written_out
from stages.quantization.build import build, compress_weights
from stages.quantization.effect.blocks import Block
from stages.quantization.effect.switched import NONE, Switched, switched
from tests.quantization.effect import culprits
from tests.quantization.effect.measuring import CORRECTION, Made, made
from tests.quantization.quantizing import infer, types
from tests.quantization.reference_runs import core
from tests.quantization.small import convolution, images, matmul, model, named, parameter, random
from tests.quantization.solution import test_smoothing


def runner(parts: Switched) -> Callable[[np.ndarray, int], list[np.ndarray]]:
    """All outputs of a model in two parts, for a sample and a choice."""
    before, after = (core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for part in (parts.before, parts.after))

    def run(sample: np.ndarray, choice: int) -> list[np.ndarray]:
        fixed = [np.array(value) for value in before([sample]).values()]
        later = [np.array(value) for value in after([*fixed[: parts.crossing], np.array(choice, np.int32)]).values()]
        return [later[index] if is_later else fixed[parts.crossing + index] for is_later, index in parts.outputs]

    return run


def without(result: Made, tested: ov.Model, blocks: Sequence[Block], correction: schema.BiasCorrection = CORRECTION) -> ov.Model:
    """The model with these blocks in floating point, built from its plan."""
    names = {name for block in blocks for name in block.quantizers}
    kept = tuple(quantizer for quantizer in result.plan.quantizers if quantizer.name not in names)
    return written_out(build(tested, result.statistics, replace(result.plan, quantizers=kept), correction)[0])


def branches() -> ov.Model:
    """Two convolutions that share their input and so a block, one without a bias, a MatMul, and an output that nothing changes."""
    x = parameter()
    left = convolution(x, random(4, 3, 3, 3), "left", random(4), pads_begin=[1], pads_end=[1])
    right = convolution(x, random(4, 3, 3, 3, seed=1), "right", pads_begin=[1], pads_end=[1])
    joined = named(op.relu(op.concat([left, right], 1)), "joined")
    last = convolution(joined, random(2, 8, 3, 3, seed=2), "last", random(2))
    head = matmul(op.reshape(last, np.array([1, -1]), False), random(72, 3, seed=3), "head")
    return model([head, named(op.exp(op.negative(x)), "apart")], x)


CASES: dict[str, Any] = {
    "branches": lambda: (branches(), images(4), {}),
    "asymmetric": lambda: (branches(), images(4), {"preset": "accuracy"}),
    "aligned": lambda: (*_of(culprits.depthwise()), {}),
    "dynamic": lambda: (*_of(culprits.dynamic()), {}),
    "smoothed": lambda: (test_smoothing.network(), test_smoothing.samples(4), test_smoothing.CONFIG),
    "halved": lambda: (*_of(culprits.residual()), {"saturation_fix": "all"}),
}


def _of(planted: culprits.Planted) -> tuple[ov.Model, list[np.ndarray]]:
    return planted.model, planted.samples


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stored", [False, True])
def test_each_choice_is_the_model_that_is_built_that_way(case: str, stored: bool) -> None:
    tested, samples, config = CASES[case]()
    result = made(tested, samples, **config)
    pair = result.pair
    if stored:
        compress_weights(pair.quantized)
    group = result.blocks[1:4]
    for quantized in (False, True):
        parts = switched(pair, group, compared(pair.floating), quantized=quantized)
        run = runner(parts)
        for choice in (NONE, *range(len(group))):
            chosen = [group[choice]] if choice != NONE else []
            gone = chosen if quantized else [block for block in result.blocks if block not in chosen]
            built = without(result, tested, gone)
            for sample, expected in zip(samples[:2], infer(built, samples[:2]), strict=True):
                for ours, theirs in zip(run(sample, choice)[: len(expected)], expected, strict=True):
                    # Sums in another order: of a value on the border between two levels the other one.
                    assert np.linalg.norm(ours - theirs) <= 2e-3 * np.linalg.norm(theirs)


def test_what_no_choice_changes_runs_apart() -> None:
    tested = branches()
    result = made(tested, images(4))
    last = [block for block in result.blocks if set(block.layers) & {"head"}]
    parts = switched(result.pair, last, [], quantized=False)
    assert types(parts.before).count("Convolution") == 3 and types(parts.after).count("Convolution") == 0
    assert types(parts.after).count("MatMul") == 2  # quantized and not
    assert parts.outputs == ((True, 0), (False, 0))
    assert "FakeQuantize" not in types(parts.before) + types(parts.after)


def test_models_stay_as_they_are() -> None:
    result = made(branches(), images(4))
    before = [types(result.pair.quantized), types(result.pair.floating)]
    switched(result.pair, result.blocks, [], quantized=True)
    assert [types(result.pair.quantized), types(result.pair.floating)] == before


def test_biases_that_were_corrected_everywhere_go_back() -> None:
    """bias_correction.apply_for_all_nodes corrects layers that stay float, too: the floating-point model has the biases it had."""
    tested, samples = branches(), images(4)
    result = made(tested, samples)
    shifted = result.pair.quantized
    (bias,) = [node for node in shifted.get_ops() if node.get_friendly_name() == "last/biased"]
    bias.input(1).replace_source_output(op.constant(np.full((1, 2, 1, 1), 5, np.float32)).output(0))
    others = tuple(block for block in result.blocks if "last" not in block.layers)
    parts = switched(result.pair, others, [], quantized=False)
    (expected,) = infer(tested, samples[:1])
    np.testing.assert_allclose(runner(parts)(samples[0], NONE)[0], expected[0], rtol=1e-4, atol=1e-4)
