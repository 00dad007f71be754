"""Other range estimators and the other bias correction, to be tried before a layer is given up (POT's tune_hyperparams).

The grid is that of POT 2023.3, and ranges of least error besides. Only the estimators change: schemes, clipping
values and the estimators of weights stay what was asked for. A symmetric range has the largest magnitude as its border, not the
largest value, and its lower border, which only decides about the sign, stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from stages.configuration.target_device import ACTIVATIONS
from stages.quantization.placement.plan import Border, Estimator, Plan, Quantizer
from stages.quantization.statistics.estimators import default_estimator
from stages.search.candidates import Candidate, candidate_key

OUTLIER_PROBS = (1e-3, 1e-4)  # POT writes 10e-4 and 10e-5
EXTREME = None  # in place of a probability: the extreme value


def estimator_variants(base: Candidate) -> list[Candidate]:
    """`base` with every combination of estimators of the activations' lower and upper borders that makes a difference."""
    choices = (EXTREME, *OUTLIER_PROBS)
    variants = []
    for low, high in product(choices, choices):
        label = f"lower border {_words(low, 'min')}, upper border {_words(high, 'max')}"
        # Corrections that were found with inference belong to the weights, which stay.
        variants.append(replace(base, plan=_with_estimators(base.plan, low, high), label=label))
    variants.append(replace(base, plan=_of_least_error(base.plan), label="ranges of least error"))
    different = {candidate_key(variant): variant for variant in reversed(variants)}
    different.pop(candidate_key(base), None)
    return [variant for variant in variants if different.get(candidate_key(variant)) is variant]


def other_bias_correction(base: Candidate) -> Candidate | None:
    """`base` with the bias correction algorithm that it does not use; None where biases are not to be corrected."""
    correction = base.bias_correction
    if not correction.enabled:
        return None
    other = replace(correction, use_fast_bias=not correction.use_fast_bias)
    label = "fast bias correction" if other.use_fast_bias else "accurate bias correction"
    return replace(base, bias_correction=other, corrections=None, label=label)


def _with_estimators(plan: Plan, low: float | None, high: float | None) -> Plan:
    def changed(quantizer: Quantizer) -> Quantizer:
        if quantizer.kind != ACTIVATIONS:
            return quantizer
        lower, upper = quantizer.estimator.min, quantizer.estimator.max
        if quantizer.scheme.symmetric:
            upper = _border(upper, high, "abs_max", "abs_quantile", "max")
        else:
            lower = _border(lower, low, "min", "quantile", "min")
            upper = _border(upper, high, "max", "quantile", "max")
        return replace(quantizer, estimator=Estimator(lower, upper), choice=None)

    return replace(plan, quantizers=tuple(changed(quantizer) for quantizer in plan.quantizers))


def _of_least_error(plan: Plan) -> Plan:
    """The plan with activations' ranges of least error where enough is known of their values."""

    def changed(quantizer: Quantizer) -> Quantizer:
        if quantizer.kind != ACTIVATIONS:
            return quantizer
        least, now = default_estimator(quantizer.scheme, quantizer.kind, "mse"), quantizer.estimator
        lower, upper = (
            replace(border, clipping_value=own.clipping_value)
            for border, own in zip((least.min, least.max), (now.min, now.max), strict=True)
        )
        return replace(quantizer, estimator=Estimator(now.min if quantizer.scheme.symmetric else lower, upper), choice=None)

    return replace(plan, quantizers=tuple(changed(quantizer) for quantizer in plan.quantizers))


def _border(border: Border, probability: float | None, extreme: str, quantile: str, widest: str) -> Border:
    """A border at the widest extreme of all samples, or at the samples' mean quantile."""
    if probability is EXTREME:
        return replace(border, type=extreme, outlier_prob=None, aggregator=widest)
    return replace(border, type=quantile, outlier_prob=probability, aggregator="mean")


def _words(probability: float | None, extreme: str) -> str:
    return extreme if probability is EXTREME else f"quantile {probability:g}"
