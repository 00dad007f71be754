"""What tune_hyperparams tries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stages.configuration import schema
from stages.quantization.build import build
from stages.search.candidates import Candidate, candidate_key
from stages.search.reversion.estimator_variants import estimator_variants, other_bias_correction
from tests.quantization.quantizing import plan_of, statistics_of
from tests.quantization.small import convolution, images, model, named, parameter, random


def base(preset: str, **settings: Any) -> Candidate:
    source = parameter()
    tested = model(named(convolution(source, random(4, 3, 3, 3), "conv", random(4)), "out"), source)
    return Candidate(plan_of(tested, preset=preset, **settings))


def borders(candidate: Candidate) -> set[tuple[object, ...]]:
    return {
        (side.type, side.outlier_prob, side.aggregator)
        for quantizer in candidate.plan.quantizers
        if quantizer.kind == "activations"
        for side in (quantizer.estimator.min, quantizer.estimator.max)
    }


def test_symmetric_ranges_have_magnitudes_as_upper_borders_and_keep_the_lower_one() -> None:
    start = base("performance")
    variants = estimator_variants(start)
    lower = ("min", None, "min")
    assert [borders(variant) - {lower} for variant in variants] == [
        {("abs_max", None, "max")},
        {("abs_quantile", 1e-3, "mean")},
        {("abs_quantile", 1e-4, "mean")},
        {("histogram", None, None)},
    ]
    assert all(lower in borders(variant) for variant in variants)


def test_asymmetric_ranges_have_every_combination() -> None:
    variants = estimator_variants(base("mixed"))
    assert len({candidate_key(variant) for variant in variants}) == len(variants) == 10
    assert {("quantile", 1e-4, "mean"), ("max", None, "max")} in [borders(variant) for variant in variants]
    assert borders(variants[-1]) == {("histogram", None, None)}


def test_only_the_estimators_of_activations_change() -> None:
    start = base("mixed", range_estimator=schema.RangeEstimator(max=schema.Estimator(clipping_value=3.0)))
    for variant in estimator_variants(start):
        assert variant.bias_correction == start.bias_correction
        for quantizer, other in zip(variant.plan.quantizers, start.plan.quantizers, strict=True):
            assert replace(quantizer, estimator=other.estimator) == other
            assert quantizer.estimator.max.clipping_value == other.estimator.max.clipping_value
            if quantizer.kind == "weights":
                assert quantizer == other


def test_every_variant_can_be_built_from_the_statistics_that_the_configuration_stores() -> None:
    source = parameter()
    tested = model(named(convolution(source, random(4, 3, 3, 3), "conv", random(4)), "out"), source)
    statistics = statistics_of(tested, images(4), (1e-3, 1e-4), (1e-3, 1e-4))
    for preset in ("performance", "mixed"):
        for variant in estimator_variants(Candidate(plan_of(tested, preset=preset))):
            build(tested, statistics, variant.plan)


def test_the_other_bias_correction() -> None:
    start = base("performance")
    accurate = other_bias_correction(start)
    assert accurate is not None and not accurate.bias_correction.use_fast_bias
    back = other_bias_correction(accurate)
    assert back is not None and candidate_key(back) == candidate_key(start)
    assert other_bias_correction(replace(start, bias_correction=schema.BiasCorrection(enabled=False))) is None
