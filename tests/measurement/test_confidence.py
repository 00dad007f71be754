"""Confidence intervals of paired drops against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from stages.measurement.confidence import paired_drop


def mean(rows: np.ndarray) -> float:
    return float(rows[:, 0].mean())


def test_interval_is_that_of_the_paired_normal_approximation() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(0.8, 0.3, (4000, 1))
    candidate = baseline - 0.02 + generator.normal(0, 0.1, (4000, 1))  # the pairs share most of their spread
    drop = paired_drop(mean, baseline, candidate, higher_is_better=True, confidence=0.95, generator=np.random.default_rng(1))
    difference = (baseline - candidate)[:, 0]
    half = 1.959964 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert drop.value == pytest.approx(difference.mean(), abs=1e-12)
    assert drop.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert drop.high == pytest.approx(difference.mean() + half, abs=0.1 * half)
    unpaired = 1.959964 * np.sqrt(baseline.var() + candidate.var()) / np.sqrt(4000)
    assert half < unpaired / 3  # or the test would not tell a paired interval from an unpaired one


def test_interval_of_right_and_wrong_answers_covers_the_true_drop_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        baseline = (generator.random((300, 1)) < 0.9).astype(float)
        broken = generator.random((300, 1)) < 0.05
        candidate = np.where(broken, 0.0, baseline)
        drop = paired_drop(mean, baseline, candidate, higher_is_better=True, confidence=0.9, generator=generator, resamples=300)
        assert drop.low is not None and drop.high is not None
        covered += drop.low <= 0.9 * 0.05 <= drop.high
    assert 165 <= covered <= 195  # 180 expected; four standard deviations are 17


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, 0.25), (False, -0.25)])
def test_a_drop_is_positive_when_the_candidate_is_worse(higher_is_better: bool, expected: float) -> None:
    baseline, candidate = np.ones((4, 1)), np.array([[1.0], [1.0], [1.0], [0.0]])
    drop = paired_drop(
        mean, baseline, candidate, higher_is_better=higher_is_better, confidence=0.9, generator=np.random.default_rng(0), resamples=20
    )
    assert drop.value == expected
    assert drop.relative == expected


def test_a_metric_that_is_no_mean_is_resampled_by_its_own_value() -> None:
    """A ratio of sums, as mean IoU: the interval is that of the ratio, not of the mean of ratios."""
    generator = np.random.default_rng(3)
    size = generator.integers(1, 100, 2000).astype(float)
    baseline = np.stack([np.rint(size * 0.9), size], axis=1)
    candidate = np.stack([np.rint(size * np.where(size > 50, 0.8, 0.9)), size], axis=1)

    def ratio(rows: np.ndarray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum())

    drop = paired_drop(ratio, baseline, candidate, higher_is_better=True, confidence=0.95, generator=np.random.default_rng(0))
    exact = (baseline[:, 0].sum() - candidate[:, 0].sum()) / size.sum()
    residual = (baseline - candidate)[:, 0] - exact * size  # delta method of a ratio of sums
    half = 1.959964 * np.sqrt((residual**2).sum()) / size.sum()
    assert drop.value == pytest.approx(exact)
    assert (drop.low, drop.high) == pytest.approx((exact - half, exact + half), abs=0.1 * half)


def test_same_seed_same_interval_and_a_baseline_of_zero_has_no_relative_drop() -> None:
    values = np.random.default_rng(0).random((50, 1))

    def once(baseline: np.ndarray) -> tuple[float | None, ...]:
        return paired_drop(mean, baseline, values, higher_is_better=False, confidence=0.9, generator=np.random.default_rng(7), resamples=50)

    assert once(values / 2) == once(values / 2)
    assert once(np.zeros((50, 1)))[3] is None


def test_no_interval_where_the_metric_is_undefined_on_a_resample() -> None:
    present = np.array([[1.0], [np.nan]])

    def first_known(rows: np.ndarray) -> float:
        known = rows[np.isfinite(rows)]
        return float(known.mean()) if len(known) else float("nan")

    drop = paired_drop(
        first_known, present, present, higher_is_better=True, confidence=0.9, generator=np.random.default_rng(0), resamples=50
    )
    assert (drop.value, drop.low, drop.high) == (0.0, None, None)


def test_values_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_drop(mean, np.ones((3, 1)), np.ones((4, 1)), higher_is_better=True, confidence=0.9, generator=np.random.default_rng(0))
