"""Aggregators, statistics of constants and tables of estimators against their definitions (as POT 2023.3)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS, Scheme
from stages.quantization.placement.plan import Border, Estimator
from stages.quantization.statistics.estimators import aggregate, array_statistic, default_estimator, resolve_estimator

samples = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def inner(values: np.ndarray) -> np.ndarray:
    """What lies between the 1 % and 99 % quantiles, inclusive; if that is nothing, as of two samples, everything."""
    kept = values[(values >= np.quantile(values, 0.01)) & (values <= np.quantile(values, 0.99))]
    return kept if kept.size else values


def hodges_lehmann(values: np.ndarray) -> float:
    sums = [first + second for first, second in combinations(values, 2)]
    return float(np.median(sums) / 2) if sums else float(values[0])


DEFINITIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "median": np.median,
    "mean_no_outliers": lambda values: np.mean(inner(values)),
    "median_no_outliers": lambda values: np.median(inner(values)),
    "hl_estimator": hodges_lehmann,
    "mean_unclipped": np.mean,  # what it clips is seen on all values only (test_parameters)
}


def test_every_configurable_aggregator_is_defined() -> None:
    assert set(DEFINITIONS) == set(schema.AGGREGATORS)


@pytest.mark.parametrize("name", schema.AGGREGATORS)
@given(values=samples)
@settings(max_examples=50, deadline=None)
def test_aggregators(name: str, values: list[float]) -> None:
    column = np.array(values)
    expected = DEFINITIONS[name](column)
    found = aggregate(name, column)
    assert found.shape == () and found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    channels = np.stack([column, 3 - 2 * column, np.zeros_like(column)], axis=1)
    per_channel = [DEFINITIONS[name](channel) for channel in channels.T]
    np.testing.assert_allclose(aggregate(name, channels), per_channel, rtol=1e-12, atol=1e-12)


def test_an_outlier_is_left_out() -> None:
    values = np.array([*np.linspace(0, 1, 200), 1e6])
    assert aggregate("mean", values) > 1000
    for name in ("mean_no_outliers", "median_no_outliers", "hl_estimator"):
        assert aggregate(name, values) == pytest.approx(0.5, abs=0.02)


def test_statistics_of_constants() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    by_hand = {
        "min": lambda flat, p: flat.min(),
        "max": lambda flat, p: flat.max(),
        "abs_max": lambda flat, p: np.abs(flat).max(),
        "quantile": lambda flat, p: np.quantile(flat, p),
        "abs_quantile": lambda flat, p: np.quantile(np.abs(flat), p),
    }
    for kind, define in by_hand.items():
        for upper in (False, True):
            border, probability = Border(kind, outlier_prob=0.03), 0.97 if upper else 0.03
            exact = values.astype(np.float64)
            np.testing.assert_allclose(array_statistic(values, border, None, upper=upper), define(exact, probability), rtol=1e-6)
            for axis in range(3):
                expected = [define(np.take(exact, index, axis), probability) for index in range(values.shape[axis])]
                np.testing.assert_allclose(array_statistic(values, border, axis, upper=upper), expected, rtol=1e-6)
    assert array_statistic(np.asarray(-3.0), Border("abs_max"), None, upper=True) == 3


def scheme(mode: str, granularity: str) -> Scheme:
    return Scheme(8, mode, granularity)


def test_default_estimators() -> None:
    expected = {
        ("pertensor", "symmetric"): (Border("min", aggregator="min"), Border("abs_max", aggregator="mean")),
        ("pertensor", "asymmetric"): (Border("min", aggregator="mean"), Border("max", aggregator="mean")),
        ("perchannel", "symmetric"): (Border("min", aggregator="min", granularity="pertensor"), Border("abs_max", aggregator="max")),
        ("perchannel", "asymmetric"): (Border("min", aggregator="min"), Border("max", aggregator="max")),
    }
    for (granularity, mode), borders in expected.items():
        assert default_estimator(scheme(mode, granularity), ACTIVATIONS) == Estimator(*borders)
        upper = Border("abs_max" if mode == "symmetric" else "max")
        assert default_estimator(scheme(mode, granularity), WEIGHTS) == Estimator(Border("min"), upper)


def test_quantile_preset() -> None:
    symmetric = default_estimator(scheme("symmetric", "pertensor"), ACTIVATIONS, "quantile")
    assert symmetric.min == Border("min", aggregator="min")  # for the sign alone
    assert symmetric.max == Border("abs_quantile", outlier_prob=1e-4, aggregator="mean")
    asymmetric = default_estimator(scheme("asymmetric", "perchannel"), ACTIVATIONS, "quantile")
    assert asymmetric.min == Border("quantile", outlier_prob=1e-4, aggregator="min")
    assert asymmetric.max == Border("quantile", outlier_prob=1e-4, aggregator="max")
    weights = default_estimator(scheme("symmetric", "perchannel"), WEIGHTS, "quantile")
    assert weights.max == Border("abs_quantile", outlier_prob=1e-4)


def test_configured_keys_refine_the_preset() -> None:
    config = schema.RangeEstimator(
        min=schema.Estimator(aggregator="median"), max=schema.Estimator(type="quantile", outlier_prob=1e-3, clipping_value=6.0)
    )
    found = resolve_estimator(scheme("asymmetric", "pertensor"), ACTIVATIONS, config)
    assert found.min == Border("min", aggregator="median")
    assert found.max == Border("quantile", outlier_prob=1e-3, clipping_value=6.0, aggregator="mean")


def test_a_quantile_without_a_probability_gets_the_default_where_pot_fails() -> None:
    config = schema.RangeEstimator(max=schema.Estimator(type="abs_quantile"))
    assert resolve_estimator(scheme("symmetric", "pertensor"), ACTIVATIONS, config).max.outlier_prob == 1e-4
    kept = schema.RangeEstimator(preset="quantile", max=schema.Estimator(aggregator="max"))
    assert resolve_estimator(scheme("symmetric", "pertensor"), ACTIVATIONS, kept).max == Border("abs_quantile", 1e-4, aggregator="max")


def test_weights_have_no_aggregator() -> None:
    config = schema.RangeEstimator(max=schema.Estimator(aggregator="mean"))
    assert resolve_estimator(scheme("symmetric", "perchannel"), WEIGHTS, config).max == Border("abs_max")
