"""Noise at the outputs, as a metric."""

from __future__ import annotations

import numpy as np
import pytest

from stages.search.planning.output_noise import NOISE, OutputNoise, noise_problem, output_noise
from tests.search.problems import small_candidate, small_problem
from tests.search.reverting import session_of


def test_the_share_of_error_in_signal_power_is_the_mean_over_outputs() -> None:
    reference = [np.array([3.0, 4.0]), np.array([10], np.int64)]
    assert OutputNoise().per_sample([np.array([3.0, 4.5]), np.array([9], np.int64)], reference) == pytest.approx((0.25 / 25 + 0.01) / 2)
    assert OutputNoise().per_sample(reference, reference) == 0.0


@pytest.mark.parametrize(
    ("output", "reference", "share"),
    [
        (np.ones(3), np.ones(2), 1.0),  # another number of boxes
        (np.array([np.nan]), np.ones(1), 1.0),
        (np.array([1e30]), np.ones(1), 1.0),
        (np.zeros(2), np.zeros(2), 0.0),
        (np.ones(2), np.zeros(2), 1.0),
        (np.array([1.0, 2.0]), np.array([1.0, -np.inf]), 0.0),  # a mask
    ],
)
def test_what_cannot_be_compared_is_all_noise(output: np.ndarray, reference: np.ndarray, share: float) -> None:
    assert OutputNoise().per_sample([output], [reference]) == share


def test_more_is_noisier_and_nothing_is_measured_twice() -> None:
    problem = noise_problem(small_problem(60))
    full = small_candidate(small_problem(60))
    positions = tuple(range(20))
    with session_of(problem) as session:
        found = output_noise(session, [full, full], positions)
        assert 0 < found[0] == found[1] < 1
        assert session.evaluated == 1
    assert list(problem.metrics) == [NOISE] and problem.key != small_problem(60).key
    assert problem.engine.inference_precision == "f32"
