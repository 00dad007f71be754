"""Counts of values against numpy."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.distribution import PICKED, counted, picked_places, representatives, sparse
from tests.quantization.quantizing import statistics_of, tensor
from tests.quantization.small import convolution, images, model, named, parameter, random


def test_what_stands_for_values_is_within_a_sixteenth_of_them() -> None:
    for value in (1.0, -1.06, 3.99, -1e-20, 6e20, 0.0):
        values, shares = representatives(sparse(counted(np.full(7, value, np.float32))))
        assert shares.tolist() == [1.0]
        assert values[0] == pytest.approx(value, rel=1 / 16)


def test_shares_are_those_of_finite_values() -> None:
    counts = counted(np.array([0.0, -0.0, 2.0, -4.0, np.inf, -np.inf, np.nan], np.float32))
    values, shares = representatives(sparse(counts))
    assert dict(zip(values.tolist(), shares.tolist(), strict=True)) == {0.0: 0.5, 2.125: 0.25, -4.25: 0.25}


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert (counted(values[:300]) + counted(values[300:]) == counted(values)).all()


@pytest.mark.parametrize("size", [1, PICKED, PICKED + 1, 3 * 64 * 64])
def test_places_are_spread_and_in_step_with_no_axis(size: int) -> None:
    places = picked_places(size)
    assert len(places) == len(set(places.tolist())) <= PICKED
    assert places.min() >= 0 and places.max() < size
    if size > 10 * PICKED:
        # All 64 rows of an image [3, 64, 64] are as good as another, and so are its columns.
        for period in (64, 3):
            assert np.bincount(places % period, minlength=period).max() < 4 * PICKED / period


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_distribution_of_a_tensor_is_that_of_its_values(dynamic: bool) -> None:
    x = parameter((1, 3, -1, -1) if dynamic else (1, 3, 24, 24))
    tested = model(convolution(named(op.relu(x), "relu"), random(4, 3, 3, 3), "layer"), x)
    samples = images(60, (1, 3, 24, 24))
    statistics = statistics_of(tested, samples, probabilities=[1e-4])
    values, shares = representatives(statistics.distribution[TensorName("relu", 0)])
    raw = np.stack(tensor(tested, "relu", samples)).reshape(-1)
    assert shares[values == 0].sum() == pytest.approx(float((raw == 0).mean()), abs=0.02)
    drawn = statistics.distribution[TensorName("relu", 0)][1].sum()
    for power in (1, 2):
        powers = raw.astype(np.float64) ** power
        # Four standard errors of so many values, and what ranges an eighth wide leave open.
        tolerance = 4 * float(powers.std()) / drawn**0.5 + 0.01 * float(powers.mean())
        assert float(shares @ values**power) == pytest.approx(float(powers.mean()), abs=tolerance)


def test_what_is_stored_does_not_grow_with_the_samples() -> None:
    x = parameter((1, 3, 24, 24))
    tested: ov.Model = model(convolution(named(op.relu(x), "relu"), random(4, 3, 3, 3), "layer"), x)
    few, many = (statistics_of(tested, images(count, (1, 3, 24, 24))).distribution[TensorName("relu", 0)] for count in (50, 200))
    assert many[1].sum() == 4 * few[1].sum()
    assert many.shape[1] < 1.5 * few.shape[1]
