"""Every file in conf/target_device/ can be chosen, and quantizes a real model to what it offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest

from stages.common.errors import ConfigError
from stages.configuration import schema
from stages.configuration.composition import compose
from stages.configuration.target_device import Scheme, Target, choose, read_target
from stages.configuration.validation import checked
from stages.quantization.build import build
from stages.quantization.planning import make_plan
from tests.quantization import reference_runs
from tests.quantization.reference_runs import core

DEVICES = sorted(path.stem for path in (reference_runs.CONF / "target_device").glob("*.yaml"))


def chosen(device: str) -> Target:
    """The device's tables as `config` composes them."""
    return read_target(checked(compose([f"target_device={device}"])).target_device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_is_quantized_to_what_the_device_offers(device: str) -> None:
    target = chosen(device)
    model, graph = reference_runs.model("smallcnn")
    plan = make_plan(graph, target, schema.Quantization())
    offered = {scheme for groups in target.operations.values() for alternatives in groups.values() for scheme in alternatives}
    weights = [quantizer for quantizer in plan.quantizers if quantizer.kind == "weights"]
    assert weights and {quantizer.scheme for quantizer in weights} <= offered
    assert len(weights) < len(plan.quantizers)
    quantized, _ = build(model, reference_runs.statistics("smallcnn", 4), plan)
    assert isinstance(core().compile_model(quantized, "CPU"), ov.CompiledModel)
    inserted = [node for node in quantized.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(inserted) >= len(plan.quantizers)


# ------------------------------------------------------------------------------------------- tables (as POT 2023.3)

A = (Scheme(8, "symmetric"), Scheme(8, "asymmetric"))
A_CHANNEL = tuple(replace(scheme, granularity="perchannel") for scheme in A)
W = (Scheme(8, "symmetric", "perchannel", -127, 127), Scheme(8, "asymmetric", "perchannel"))
NARROW = (*W, Scheme(4, "symmetric", "perchannel", -7, 7), Scheme(2, "symmetric", "perchannel", -1, 1))
A16, W16 = (Scheme(16, "symmetric", "pertensor", -32768, 32767),), (Scheme(16, "symmetric", "pertensor", -32767, 32767),)
WEIGHTED = ("Convolution", "ConvolutionBackpropData", "MatMul", "DepthWiseConvolution")
ELEMENTWISE = (
    *("Add", "Multiply", "Subtract", "Divide", "Maximum", "Minimum", "Less", "LessEqual", "Greater", "GreaterEqual", "Equal"),
    *("NotEqual", "FloorMod", "LogicalOr", "LogicalXor", "LogicalAnd", "LogicalNot"),
)
ONE_INPUT = ("Power", "AvgPool", "NormalizeL2", "ReduceMean", "Interpolate", "MVN")
RECURRENT = ("LSTMSequence", "GRUSequence")
PASS_THROUGH = {
    *("MaxPool", "ReduceMax", "Reshape", "Concat", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Transpose", "Tile", "StridedSlice"),
    *("ShuffleChannels", "Broadcast", "Pad", "Minimum", "Maximum", "ConvertLike", "Gather", "DepthToSpace"),
}

Table = dict[str, tuple[tuple[Scheme, ...], tuple[Scheme, ...]]]


def general(weights: tuple[Scheme, ...] = W, recurrent: bool = True) -> Table:
    """Activations and weights per operation, on everything but GNA."""
    table: Table = {kind: (A_CHANNEL if kind == "DepthWiseConvolution" else A, weights) for kind in WEIGHTED}
    table |= dict.fromkeys(ELEMENTWISE, (A, W)) | dict.fromkeys(ONE_INPUT, (A, ()))
    return table | dict.fromkeys(RECURRENT, (A, W[:1]) if recurrent else ((), ()))


TABLES: dict[str, Table] = {
    "any": general(),
    "cpu": general(),
    "cpu_spr": general(),
    "gpu": general(recurrent=False),
    "npu": general(NARROW, recurrent=False),
    "gna": {
        **dict.fromkeys(("Convolution", "Add", "Multiply", "Subtract"), (A16, W16)),
        "MatMul": (A16, (Scheme(8, "symmetric", "perchannel", -127, 127), *W16)),
    },
}


@pytest.mark.parametrize("device", TABLES)
def test_tables(device: str) -> None:
    target = chosen(device)
    found = {kind: (groups.get("activations", ()), groups.get("weights", ())) for kind, groups in target.operations.items()}
    assert found == TABLES[device]
    assert (target.name, target.rules) == (device.upper(), device.upper())
    assert target.unified_scales == (set() if device == "gna" else {"Concat"})
    assert target.pass_through == PASS_THROUGH if device != "gna" else target.pass_through < PASS_THROUGH


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", schema.PRESETS)
def test_no_preset_takes_fewer_bits_than_the_fastest_scheme_has(device: str, preset: str) -> None:
    for groups in chosen(device).operations.values():
        for group, alternatives in groups.items():
            assert not alternatives or choose(alternatives, preset, group).bits >= alternatives[0].bits


def test_the_most_accurate_scheme_of_gna_has_more_bits() -> None:
    weights = chosen("gna").alternatives("MatMul", "weights")
    assert [choose(weights, preset, "weights").bits for preset in ("performance", "mixed", "accuracy", "auto")] == [8, 8, 16, 8]


# ------------------------------------------------------------------------------------------------------ asked for by hand


@pytest.mark.parametrize(("device", "bits"), [("npu", 4), ("npu", 2), ("template", 4), ("template", 2), ("gna", 16)])
def test_bits_are_chosen_among_the_device_s(device: str, bits: int) -> None:
    _, graph = reference_runs.model("smallcnn")
    plan = make_plan(graph, chosen(device), schema.Quantization(weights=schema.Scheme(bits=bits)))
    found = {quantizer.scheme.bits for quantizer in plan.quantizers if quantizer.kind == "weights"}
    assert found == {bits}


ASKED: dict[str, tuple[dict[str, Any], dict[str, Any], set[int], set[int]]] = {
    # what, weights and activations asked for, levels of weights and of activations
    "4-bit weights": ({"bits": 4}, {}, {15}, {256}),
    "2-bit weights": ({"bits": 2, "mode": "symmetric"}, {}, {3}, {256}),
    "asymmetric": ({"mode": "asymmetric", "granularity": "pertensor"}, {"mode": "asymmetric"}, {256}, {256}),
    "levels": ({"level_low": -7, "level_high": 7}, {}, {15}, {256}),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_the_template_offers_is_built(what: str) -> None:
    weights, activations, weight_levels, activation_levels = ASKED[what]
    asked: dict[str, Any] = {"weights": schema.Scheme(**weights), "activations": schema.Scheme(**activations)}
    found = _levels("template", schema.Quantization(**asked))
    assert found == {"weights": weight_levels, "activations": activation_levels}


@pytest.mark.parametrize(
    ("group", "asked"),
    [
        ("weights", {"bits": 3}),
        ("weights", {"bits": 4, "mode": "asymmetric"}),
        ("weights", {"bits": 2, "mode": "asymmetric", "granularity": "perchannel"}),
        ("weights", {"level_low": -100, "level_high": 100}),
        ("activations", {"bits": 16}),
        ("activations", {"granularity": "perchannel"}),
        ("activations", {"level_low": 0, "level_high": 255}),
    ],
    ids=str,
)
def test_what_it_does_not_offer_is_one_line_that_lists_what_it_does_unless_forced(group: str, asked: dict[str, Any]) -> None:
    sections: dict[str, Any] = {group: schema.Scheme(**asked)}
    _, graph = reference_runs.model("smallcnn")
    with pytest.raises(ConfigError) as raised:
        make_plan(graph, chosen("template"), schema.Quantization(**sections))
    message = str(raised.value)
    assert "\n" not in message and message.startswith(f"quantization.{group} for ")
    words = ", ".join(f"{key}={value}" for key, value in asked.items())
    assert f"{words} cannot run on the target, which offers: 8-bit symmetric" in message
    assert message.endswith("(quantization.allow_unsupported=true forces it)")
    plan = make_plan(graph, chosen("template"), schema.Quantization(**sections, allow_unsupported=True))
    schemes = [quantizer.scheme for quantizer in plan.quantizers if quantizer.kind == group]
    assert schemes and all(getattr(scheme, key) == value for scheme in schemes for key, value in asked.items() if key != "granularity")
    forced = _levels("template", schema.Quantization(**sections, allow_unsupported=True))
    if "level_low" in asked:
        assert forced[group] == {abs(asked["level_low"]) + abs(asked["level_high"]) + 1}
    if "bits" in asked:
        assert max(forced[group]) <= 2 ** asked["bits"]


def _levels(device: str, config: schema.Quantization) -> dict[str, set[int]]:
    """The levels of a model that was built, compiled and run; by group."""
    model, graph = reference_runs.model("smallcnn")
    plan = make_plan(graph, chosen(device), config)
    quantized, _ = build(model, reference_runs.statistics("smallcnn", 4, every_channel=True), plan)
    outputs = core().compile_model(quantized, "CPU")([np.zeros([1, *quantized.inputs[0].get_partial_shape().to_shape()[1:]], np.float32)])
    assert all(np.isfinite(values).all() for values in outputs.values())
    levels = {
        node.get_friendly_name(): node.get_attributes()["levels"] for node in quantized.get_ops() if node.get_type_name() == "FakeQuantize"
    }
    return {group: {levels[q.name] for q in plan.quantizers if q.kind == group} for group in ("weights", "activations")}
