"""What a layer may choose, and the plan that a choice makes."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import ConfigError, UserError
from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import Plan
from stages.quantization.planning import make_plan, make_plan_options
from stages.search.tuning.space import FLOAT, QUANTIZED, Proposal, Space, SpaceParameter
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, model, named, parameter
from tests.quantization.small import random as weights
from tests.search.problems import small_model

FULL_SCOPE: dict[str, Any] = {
    "tuning_scope": list(schema.TUNING_SCOPE),
    "estimator_tuning_scope": list(schema.ESTIMATOR_TUNING_SCOPE),
    "outlier_prob_choices": [1e-3, 1e-5],
}


def space(
    net: ov.Model | None = None, device: str = "any", best: Plan | None = None, config: dict[str, Any] | None = None, **scope: Any
) -> Space:
    """The space of a model; `scope`: keys of schema.TuneSpace."""
    graph = read_graph(net or small_model())
    offer = make_plan_options(graph, target(device), schema.Quantization(**config or {}))
    return Space(offer, schema.TuneSpace(**scope), [node.name for node in graph.nodes], best)


def choices(tested: Space) -> dict[str, tuple[str, ...]]:
    """All parameters with their choices."""
    return {question.name: offered for question, offered, _ in tested.parameters()}


def drawn(seed: int) -> Callable[[SpaceParameter, tuple[str, ...], str], str]:
    generator = random.Random(seed)
    return lambda question, offered, default: generator.choice(offered)


# ------------------------------------------------------------------------------------------------ scope


@pytest.mark.parametrize(
    ("scope", "keys"),
    [
        ({"tuning_scope": ["layer"]}, {"quantize"}),
        ({"tuning_scope": ["mode"]}, {"activations.mode", "weights.mode"}),
        (
            {"tuning_scope": ["range_estimator"], "estimator_tuning_scope": ["preset"]},
            {"activations.estimator.preset", "weights.estimator.preset"},
        ),
        (
            {"tuning_scope": ["range_estimator"], "estimator_tuning_scope": ["type"]},
            {"activations.estimator.max.type", "weights.estimator.max.type"},
        ),
        # The presets differ in types only.
        (
            {"tuning_scope": ["range_estimator"], "estimator_tuning_scope": ["preset", "type"]},
            {"activations.estimator.max.type", "weights.estimator.max.type"},
        ),
        ({"tuning_scope": ["range_estimator"], "estimator_tuning_scope": ["aggregator"]}, {"activations.estimator.max.aggregator"}),
        (
            {
                "tuning_scope": ["range_estimator"],
                "estimator_tuning_scope": ["type", "outlier_prob"],
                "outlier_prob_choices": [1e-2, 1e-3],
            },
            {f"{kind}.estimator.max.{key}" for kind in ("activations", "weights") for key in ("type", "outlier_prob")},
        ),
    ],
)
def test_scope_says_what_is_asked(scope: dict[str, Any], keys: set[str]) -> None:
    found = {name.removeprefix("conv1.") for name in choices(space(**scope)) if name.startswith("conv1.")}
    assert found == keys


def test_outlier_probabilities_are_the_choices() -> None:
    found = choices(space(**FULL_SCOPE))
    assert found["conv1.activations.estimator.max.outlier_prob"] == ("0.001", "1e-05")
    assert found["conv1.activations.estimator.max.aggregator"] == schema.AGGREGATORS


def test_bits_and_granularity_are_those_of_the_target() -> None:
    found = choices(space(device="template", tuning_scope=["bits", "mode", "granularity"]))
    assert found["conv1.weights.bits"] == ("8", "4", "2")
    assert found["conv1.activations.bits"] == ("8", "4")
    # Asymmetric weights have 8 bits only, and symmetric ones are per channel only.
    assert found["conv1.weights.mode"] == ("symmetric", "asymmetric")
    tested = space(device="template", tuning_scope=["bits", "mode", "granularity"])
    for bits, asked in (("8", True), ("4", False)):
        proposal = tested.ask(lambda question, _, default, bits=bits: bits if question.key == "bits" else default)  # type: ignore[misc]
        assert ("conv1.weights.mode" in proposal) == asked


def test_what_the_target_cannot_run_is_not_offered() -> None:
    for device in ("any", "template", "gna", "npu"):
        tested = space(device=device, **FULL_SCOPE)
        allowed = {name: {quantizer.scheme for quantizer in offered} for name, offered in tested.offer.schemes.items()}
        for seed in range(20):
            plan = tested.plan(tested.ask(drawn(seed)))
            assert all(quantizer.scheme in allowed[quantizer.name] for quantizer in plan.quantizers)


def test_pinned_schemes_stay_pinned() -> None:
    assert not [name for name in choices(space(config={"weights": schema.Scheme(mode="symmetric")})) if name.endswith("weights.mode")]


# ------------------------------------------------------------------------------------------------ what a choice implies


def test_estimator_follows_the_mode() -> None:
    """POT dropped the choice instead: the default estimators of the modes differ (as POT 2023.3)."""
    tested = space(tuning_scope=["mode"])
    plan = tested.plan({"conv1.activations.mode": "asymmetric", "conv1.weights.mode": "asymmetric"})
    mixed = {
        quantizer.name: quantizer
        for quantizer in make_plan(read_graph(small_model()), target(), schema.Quantization(preset="accuracy")).quantizers
    }
    base = {quantizer.name: quantizer for quantizer in tested.offer.plan.quantizers}
    for quantizer in plan.quantizers:
        chosen = quantizer.layers[0].name == "conv1"
        assert quantizer == (mixed if chosen else base)[quantizer.name]


def test_estimator_of_the_configuration_follows_too() -> None:
    estimator = schema.RangeEstimator(max=schema.Estimator(aggregator="median"))
    tested = space(config={"range_estimator": estimator}, tuning_scope=["mode"])
    plan = tested.plan({"conv1.activations.mode": "asymmetric"})
    changed = next(quantizer for quantizer in plan.quantizers if quantizer.name == "relu0/fq_output_0")
    assert (changed.scheme.mode, changed.estimator.max.aggregator, changed.estimator.max.type) == ("asymmetric", "median", "max")


def test_each_estimator_choice_reaches_the_quantizer() -> None:
    tested = space(**FULL_SCOPE)
    plan = tested.plan(
        {
            "conv1.activations.mode": "asymmetric",
            "conv1.activations.estimator.min.type": "quantile",
            "conv1.activations.estimator.min.outlier_prob": "0.001",
            "conv1.activations.estimator.max.aggregator": "hl_estimator",
            "conv1.weights.estimator.max.type": "quantile",
            "conv1.weights.estimator.max.outlier_prob": "1e-05",
        }
    )
    activation, weight = (
        next(q for q in plan.quantizers if q.kind == kind and q.layers[0].name == "conv1") for kind in ("activations", "weights")
    )
    assert (activation.estimator.min.type, activation.estimator.min.outlier_prob) == ("quantile", 1e-3)
    assert (activation.estimator.max.type, activation.estimator.max.aggregator) == ("max", "hl_estimator")
    assert (weight.estimator.max.type, weight.estimator.max.outlier_prob) == ("abs_quantile", 1e-5)


def test_preset_choice() -> None:
    plan = space().plan({"conv1.activations.estimator.preset": "quantile"})
    changed = [quantizer for quantizer in plan.quantizers if quantizer.estimator.max.type == "abs_quantile"]
    assert [quantizer.layers[0].name for quantizer in changed] == ["conv1"]


def test_least_error_is_a_preset_and_a_type_and_has_no_aggregator() -> None:
    plan = space().plan({"conv1.activations.estimator.preset": "mse"})
    changed = [quantizer for quantizer in plan.quantizers if quantizer.estimator.max.type == "histogram"]
    assert [quantizer.layers[0].name for quantizer in changed] == ["conv1"]
    tested = space(**FULL_SCOPE)
    proposal = tested.ask(lambda question, offered, default: "histogram" if question.key.endswith("max.type") else default)
    assert "conv1.activations.estimator.max.aggregator" not in proposal
    assert "conv1.activations.estimator.max.outlier_prob" not in proposal
    borders = [quantizer.estimator.max for quantizer in tested.plan(proposal).quantizers if quantizer.layers[0].name == "conv1"]
    assert [(border.type, border.aggregator) for border in borders] == [("histogram", None)] * 2


def test_presets_that_mean_the_same_are_offered_once() -> None:
    """Weights have no samples, so sqnr is their default."""
    offered = choices(space(tuning_scope=["range_estimator"], estimator_tuning_scope=["preset"]))
    assert offered["conv1.activations.estimator.preset"] == ("default", "quantile", "mse", "sqnr")
    assert offered["conv1.weights.estimator.preset"] == ("default", "quantile", "mse")


def test_ranges_by_sqnr_are_a_preset_and_a_type() -> None:
    plan = space().plan({"conv1.activations.estimator.preset": "sqnr"})
    changed = [quantizer.layers[0].name for quantizer in plan.quantizers if quantizer.estimator.max.type == "sqnr"]
    assert changed == ["conv1"]
    assert "sqnr" in choices(space(**FULL_SCOPE))["conv1.activations.estimator.max.type"]


def test_what_preset_auto_says_of_a_quantizer_goes_with_its_estimator() -> None:
    offer = space().offer
    marked = offer._replace(plan=replace(offer.plan, quantizers=tuple(replace(q, choice="why") for q in offer.plan.quantizers)))
    tested = Space(marked, schema.TuneSpace(), [node.name for node in read_graph(small_model()).nodes])
    plan = tested.plan({"conv1.activations.estimator.preset": "mse"})
    assert {quantizer.choice for quantizer in plan.quantizers} == {None, "why"}
    assert [quantizer.layers[0].name for quantizer in plan.quantizers if quantizer.choice is None] == ["conv1"]


def test_a_base_of_least_error_can_go_back_to_extremes() -> None:
    tested = space(config={"range_estimator": schema.RangeEstimator(preset="mse")}, **FULL_SCOPE)
    assert tested.base_proposal()["conv1.activations.estimator.max.type"] == "histogram"
    plan = tested.plan({"conv1.activations.estimator.max.type": "max"})
    border = next(q.estimator.max for q in plan.quantizers if q.kind == "activations" and q.layers[0].name == "conv1")
    assert (border.type, border.aggregator) == ("abs_max", "mean")


# ------------------------------------------------------------------------------------------------ layers


def test_layer_switched_off_has_no_quantizer_and_a_reason() -> None:
    tested = space()
    plan = tested.plan({"conv1.quantize": FLOAT})
    gone = {quantizer.name for quantizer in tested.offer.plan.quantizers} - {quantizer.name for quantizer in plan.quantizers}
    assert gone == {"relu0/fq_output_0", "conv1/fq_weights_1"}
    told = plan.floats[len(tested.offer.plan.floats) :]
    assert {(entry.name, entry.port) for entry in told} == {("conv1", 0), ("conv1", 1)}
    assert tested.share_quantized(plan) == pytest.approx(1 - 1 / len(tested.units))
    # What is switched off has nothing else to choose.
    assert not [name for name in tested.without(["conv1"]) if name.startswith("conv1.") and name != "conv1.quantize"]


def branching() -> ov.Model:
    """Two convolutions of one tensor, and a third one."""
    source = parameter()
    first = convolution(source, weights(4, 3, 3, 3, seed=1), "left")
    second = convolution(source, weights(4, 3, 3, 3, seed=2), "right")
    return model(convolution(named(op.relu(named(op.add(first, second), "sum")), "relu"), weights(2, 4, 1, 1), "last"), source)


def test_layers_that_share_a_quantizer_choose_together() -> None:
    tested = space(branching())
    unit = next(unit for unit in tested.units if unit.name == "left")
    assert set(unit.layers) >= {"left", "right"}
    plan = tested.plan({"left.activations.mode": "asymmetric", "left.weights.mode": "asymmetric"})
    modes = {quantizer.scheme.mode for quantizer in plan.quantizers if quantizer.layers[0].name in unit.layers}
    assert modes == {"asymmetric"}
    off = tested.plan({"left.quantize": FLOAT})
    assert {place.name for quantizer in off.quantizers for place in quantizer.layers} == {"sum", "last"}


def test_layers_that_share_a_range_choose_together() -> None:
    source = parameter()
    first = convolution(source, weights(4, 3, 1, 1, seed=1), "first")
    second = convolution(named(op.relu(source), "relu"), weights(4, 3, 1, 1, seed=2), "second")
    joined = named(op.concat([named(op.relu(first), "r1"), named(op.relu(second), "r2")], 1), "joined")
    tested = space(model(convolution(joined, weights(2, 8, 1, 1), "reader"), source))
    unit = next(unit for unit in tested.units if "reader" in unit.layers)
    groups = [quantizer.unified_group for quantizer in tested.offer.plan.quantizers if quantizer.name in unit.activations]
    assert len(groups) == 2
    assert len(set(groups)) == 1


def test_include_and_exclude() -> None:
    def layers(**names: list[str]) -> set[str]:
        scope: dict[str, Any] = {"tuning_scope": ["layer"], **names}
        return {name.split(".")[0] for name in choices(space(**scope))}

    everything = layers()
    assert layers(include=["conv1", "re:head|pool"]) == {"conv1", "head", "pool"}
    assert layers(exclude=["re:conv.*"]) == {name for name in everything if not name.startswith("conv")}
    assert layers(include=["re:conv.*"], exclude=["conv2"]) == {"conv0", "conv1", "conv3"}


def test_unknown_layer_is_one_line_with_the_nearest_names() -> None:
    for key in ("include", "exclude"):
        scope: dict[str, Any] = {key: ["conv_1"]}
        with pytest.raises(ConfigError, match=rf"^tune.space.{key}: 'conv_1' names no quantized layer; nearest names: conv1"):
            space(**scope)


def test_nothing_to_tune_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^tune.space.tuning_scope: there is nothing to tune: .*bits can only be as in the base"):
        space(tuning_scope=["bits"])
    with pytest.raises(UserError, match="nothing to tune"):
        space(exclude=["re:.*"])


# ------------------------------------------------------------------------------------------------ base


def test_base_is_the_preset() -> None:
    for preset in schema.PRESETS:
        tested = space(config={"preset": preset}, **FULL_SCOPE)
        assert tested.plan({}) == tested.offer.plan == tested.plan(tested.base_proposal())


def test_proposal_and_plan_are_inverse() -> None:
    for device in ("any", "template"):
        tested = space(branching(), device, **FULL_SCOPE)
        for seed in range(20):
            proposal = tested.ask(drawn(seed))
            found, exact = tested.proposal(tested.plan(proposal))
            assert exact
            assert tested.plan(found) == tested.plan(proposal)


def test_a_layer_with_one_quantizer_less_is_no_quantized_one() -> None:
    """As accuracy_aware leaves it with `restore: activations`."""
    tested = space(tuning_scope=["layer", "mode"])
    base = tested.base_proposal()
    for name in ("relu0/fq_output_0", "conv1/fq_weights_1"):
        kept = tuple(quantizer for quantizer in tested.offer.plan.quantizers if quantizer.name != name)
        plan = replace(tested.offer.plan, quantizers=kept)
        proposal, exact = tested.proposal(plan)
        assert not exact
        assert {key: value for key, value in proposal.items() if base.get(key) != value} == {"conv1.quantize": FLOAT}
        assert tested.share_quantized(plan) == pytest.approx(1 - 1 / len(tested.units))
        # A search that starts there has it in floating point.
        after = space(best=plan, tuning_scope=["layer", "mode"])
        assert after.base_proposal()["conv1.quantize"] == FLOAT
        assert {quantizer.name for quantizer in after.plan({}).quantizers} == {q.name for q in tested.plan(proposal).quantizers}


def test_plan_outside_the_scope_is_not_exact() -> None:
    mixed = make_plan(read_graph(small_model()), target(), schema.Quantization(preset="mixed"))
    assert space(tuning_scope=["mode"]).proposal(mixed)[1]
    assert not space(tuning_scope=["layer"]).proposal(mixed)[1]


def test_fine_tune_starts_from_a_plan_and_can_switch_layers_on_again() -> None:
    before = space()
    best = before.plan({"conv1.quantize": FLOAT, "conv2.activations.mode": "asymmetric"})
    after = space(best=best, tuning_scope=["layer"])
    assert set(after.plan({}).quantizers) == set(best.quantizers)
    again = after.plan({"conv1.quantize": QUANTIZED})
    assert {quantizer.name for quantizer in again.quantizers} == {quantizer.name for quantizer in before.offer.plan.quantizers}
    assert next(q for q in again.quantizers if q.name == "relu1/fq_output_0").scheme.mode == "asymmetric"
    # Without `layer` in the scope it stays off.
    fixed = space(best=best, tuning_scope=["mode"])
    assert not [name for name in choices(fixed) if name.startswith("conv1.")]


def test_fine_tune_takes_over_only_what_the_target_runs() -> None:
    narrow = space(device="template", tuning_scope=["bits"]).plan({"conv1.weights.bits": "4"})
    tested = space(best=narrow, tuning_scope=["layer"])
    assert {quantizer.scheme.bits for quantizer in tested.plan({}).quantizers} == {8}


def test_key_tells_spaces_apart() -> None:
    best = space().plan({"conv1.quantize": FLOAT})
    tested = [space(), space(tuning_scope=["layer"]), space(config={"preset": "mixed"}), space(best=best), space(branching())]
    assert len({entry.key for entry in tested}) == len(tested)
    assert space().key == space().key


# ------------------------------------------------------------------------------------------------ size


def test_products_are_never_listed() -> None:
    """A hundred layers with all that there is: POT's options for one of them exhausted the memory."""
    node: Any = parameter((1, 8, 4, 4))
    source = node
    for index in range(60):
        node = named(op.relu(convolution(node, weights(8, 8, 1, 1, seed=index), f"conv{index}")), f"relu{index}")
    graph = read_graph(model(named(op.reduce_mean(node, constant([2, 3], "axes", np.int64), keep_dims=False), "pool"), source))
    offer = make_plan_options(graph, target("template"), schema.Quantization())
    tracemalloc.start()
    started = time.process_time()
    tested = Space(offer, schema.TuneSpace(**FULL_SCOPE), [node.name for node in graph.nodes])
    lines = tested.describe()
    assert time.process_time() - started < 2  # tracing memory makes it slow
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert len(lines) > 60 * 10


def test_description_lists_every_parameter_once() -> None:
    tested = space(branching(), **FULL_SCOPE)
    lines = tested.describe()
    assert lines[0].startswith(f"{len(choices(tested))} parameters of {len(tested.units)} units")
    assert sum(line.startswith("    ") for line in lines) == len(choices(tested))
    unit = next(unit for unit in tested.units if unit.name == "left")
    assert unit.layers[1:] and f"left (with {', '.join(unit.layers[1:])})" in lines
    assert "last" in lines  # alone


def test_answers_are_only_asked_where_they_mean_something() -> None:
    tested = space(**FULL_SCOPE)
    proposal: Proposal = tested.ask(lambda question, offered, default: "quantile" if question.key.endswith("type") else default)
    assert "conv1.activations.estimator.max.outlier_prob" in proposal
    assert "conv1.activations.estimator.max.outlier_prob" not in tested.base_proposal()
    assert "conv1.activations.estimator.min.type" not in proposal  # symmetric: the lower border is a sign
