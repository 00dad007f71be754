"""Which tensors share one range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.build import build
from tests.quantization.quantizing import plan_of, statistics_of
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

CHANNELS = (1, 4, 8, 8)


def groups(tested: ov.Model, **config: Any) -> list[set[str]]:
    found: dict[int, set[str]] = {}
    for quantizer in plan_of(tested, **config).quantizers:
        if quantizer.unified_group is not None:
            found.setdefault(quantizer.unified_group, set()).add(quantizer.source.name)
    return list(found.values())


def branches(x: ov.Node) -> list[ov.Node]:
    """A tensor that is never negative and one that is."""
    pair = (convolution(x, random(4, 4, 1, 1, seed=seed), f"conv{seed}") for seed in (1, 2))
    return [named(op.relu(next(pair)), "relu"), named(op.tanh(next(pair)), "tanh")]


def joined(x: ov.Node) -> ov.Node:
    return named(op.concat(branches(x), 1), "joined")


def test_what_a_concat_joins_before_a_layer() -> None:
    x = parameter(CHANNELS)
    assert groups(model(convolution(joined(x), random(2, 8, 1, 1)), x)) == [{"relu", "tanh"}]
    assert groups(model(matmul(joined(x), random(8, 2)), x)) == [{"relu", "tanh"}]


def test_not_without_a_layer_after_it() -> None:
    x = parameter(CHANNELS)
    assert groups(model(op.avg_pool(joined(x), [2, 2], [0, 0], [0, 0], [2, 2], False), x)) == []


def test_not_before_a_depthwise_convolution_with_its_range_per_channel() -> None:
    x = parameter(CHANNELS)
    tensor = joined(x)
    assert groups(model(convolution(tensor, random(8, 1, 1, 3, 3)), x)) == []
    both = [convolution(tensor, random(8, 1, 1, 3, 3), "depthwise"), convolution(tensor, random(2, 8, 1, 1), "plain")]
    assert groups(model(both, x)) == []


def test_not_with_a_constant() -> None:
    x = parameter(CHANNELS)
    tensor = op.concat([branches(x)[0], constant(random(*CHANNELS), "fixed")], 1)
    assert groups(model(convolution(tensor, random(2, 8, 1, 1)), x)) == []


def test_concats_that_share_a_tensor_form_one_group() -> None:
    x = parameter(CHANNELS)
    relu, tanh = branches(x)
    other = named(op.sigmoid(convolution(x, random(4, 4, 1, 1, seed=3), "conv3")), "sigmoid")
    outputs = [convolution(op.concat(pair, 1), random(2, 8, 1, 1), name) for name, pair in (("a", [relu, tanh]), ("b", [tanh, other]))]
    assert groups(model(outputs, x)) == [{"relu", "tanh", "sigmoid"}]


def test_the_group_has_one_range_per_tensor_even_where_channels_are_asked_for() -> None:
    x = parameter(CHANNELS)
    plan = plan_of(
        model(convolution(joined(x), random(2, 8, 1, 1)), x), activations=schema.Scheme(granularity="perchannel"), allow_unsupported=True
    )
    granularity = {q.source.name: q.scheme.granularity for q in plan.quantizers if q.kind == "activations"}
    assert granularity == {"x": "perchannel", "relu": "pertensor", "tanh": "pertensor"}


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_the_shared_range_holds_all_and_keeps_zero_where_pots_loses_it(preset: str) -> None:
    x = parameter(CHANNELS)
    tested = model(convolution(joined(x), random(2, 8, 1, 1)), x)
    alone = {name: quantized_range(tested, preset, name, drop_groups=True) for name in ("relu", "tanh")}
    union = min(low for low, _ in alone.values()), max(high for _, high in alone.values())
    ours, pots = (quantized_range(tested, preset, "relu", pot_compatible=flag) for flag in (False, True))
    assert ours == quantized_range(tested, preset, "tanh") and pots == pytest.approx(union)
    # Symmetric: a step more below zero than above. Asymmetric: zero on a level.
    zero = -ours[0] / (ours[1] - ours[0]) * 255
    assert zero == pytest.approx(128 if preset == "performance" else round(zero), abs=1e-4)
    assert abs(-pots[0] / (pots[1] - pots[0]) * 255 - round(-pots[0] / (pots[1] - pots[0]) * 255)) > 1e-3
    step = (ours[1] - ours[0]) / 255
    assert ours[0] <= union[0] + step / 2 and ours[1] >= union[1] - step / 2


def quantized_range(
    tested: ov.Model, preset: str, name: str, drop_groups: bool = False, pot_compatible: bool = False
) -> tuple[float, float]:
    plan = plan_of(tested, preset=preset)
    if drop_groups:
        plan = replace(plan, quantizers=tuple(replace(q, unified_group=None) for q in plan.quantizers))
    _, solved = build(tested, statistics_of(tested, images(2, CHANNELS)), plan, pot_compatible=pot_compatible)
    low, high = solved.ranges[f"{name}/fq_output_0"]
    return float(low), float(high)
