"""Bounds on drops that hold whichever of many models is chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.runtime.metrics import Accuracy, CharacterAccuracy, Metric, ReferenceError
from stages.search.acceptance import Criterion, Family, losses, replaced_rows

Z = 1.6448536  # of a normal distribution, one-sided 95 %


def column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)[:, None]


def family(fp32: np.ndarray, limit: float, metric: Metric | None = None, **settings: float) -> Family:
    metric = metric or Accuracy()
    return Family({"m": Criterion(metric, fp32, metric.value(fp32), limit)}, **settings)  # type: ignore[arg-type]


def right(generator: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    return (generator.random(shape) < share).astype(np.float64)


def test_the_bound_of_a_single_model_is_that_of_bonett_and_price() -> None:
    fp32, int8 = np.ones(200), np.ones(200)
    int8[:6] = 0  # six lost
    fp32[10:12] = 0  # two gained
    one = family(column(fp32), 0.1)
    one.add("a", {"m": column(int8)})
    lost, gained = 7 / 202, 3 / 202
    expected = lost - gained + 1.6954 * math.sqrt((lost + gained - (lost - gained) ** 2) / 202)  # a tenth of the error screens
    assert one.bounds("a")["m"] == pytest.approx(expected, rel=0.03)  # the quantile is drawn
    assert one.bounds("a")["m"] >= lost - gained + Z * math.sqrt((lost + gained - (lost - gained) ** 2) / 202)


@pytest.mark.parametrize(("count", "accepted"), [(50, False), (1000, True)])
def test_what_did_not_happen_on_few_samples_may_happen_on_others(count: int, accepted: bool) -> None:
    found = family(column(np.ones(count)), 0.01)
    found.add("same", {"m": column(np.ones(count))})
    assert (found.excess("same") <= 0) is accepted
    assert found.bounds("same")["m"] > 0


def test_models_that_err_alike_cost_little_and_independent_ones_about_what_bonferroni_says() -> None:
    generator = np.random.default_rng(0)
    fp32 = column(np.ones(1000))
    first = right(generator, (1000,), 0.97)
    alike, apart = family(fp32, 0.05), family(fp32, 0.05)
    for index in range(50):
        near = first.copy()
        near[index] = 1 - near[index]
        alike.add(str(index), {"m": column(near)})
        apart.add(str(index), {"m": column(right(generator, (1000,), 0.97))})
    assert 1.69 < alike._critical_value() < 2.2
    assert 2.9 < apart._critical_value() < 3.2  # Bonferroni: 0.045 / 50 is 3.12 standard errors


def test_models_that_are_surely_beyond_the_budget_do_not_count() -> None:
    generator = np.random.default_rng(1)
    found, alone = (family(column(np.ones(1000)), 0.03) for _ in range(2))
    good = column(right(generator, (1000,), 0.99))
    for index in range(50):
        found.add(f"bad {index}", {"m": column(right(generator, (1000,), 0.8))})
    for one in (found, alone):
        one.add("good", {"m": good})
    assert found.bounds("good") == alone.bounds("good")


def test_of_many_models_just_beyond_the_budget_hardly_ever_one_is_accepted() -> None:
    """The luckiest of 20 is within the budget on the samples that it is chosen on, nearly always; for sure only in one case in 20."""
    lucky = sure = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        fp32 = right(generator, (400,), 0.9)
        found = family(column(fp32), 0.03, seed=seed)
        for index in range(20):
            lost, gained = right(generator, (400,), 0.055), right(generator, (400,), 0.095)  # 0.9 * 0.055 - 0.1 * 0.095 = 0.04
            found.add(str(index), {"m": column(np.where(fp32 > 0, 1 - lost, gained))})
        drops = [values[0][:-2].mean() for values in found._losses.values()]
        lucky += min(drops) <= 0.03
        sure += any(found.excess(key) <= 0 for key in found)
    assert lucky > 85
    assert sure <= 5


def test_samples_needed_are_enough() -> None:
    int8 = np.where(np.arange(300) % 75 == 0, 0.0, 1.0)  # four lost
    few = family(column(np.ones(300)), 0.02)
    few.add("a", {"m": column(int8)})
    needed = few.samples_needed("a")
    assert few.excess("a") > 0 and needed is not None and 300 < needed < 10_000
    for factor, enough in ((0.5, False), (1.5, True)):
        count = int(needed * factor)
        many = family(column(np.ones(count)), 0.02)
        many.add("a", {"m": column(np.resize(int8, count))})
        assert (many.excess("a") <= 0) is enough
    few.add("worse", {"m": column(np.arange(300) % 10 > 0)})
    assert few.samples_needed("worse") is None  # no number of samples makes a drop of ten points one of three


def test_metrics_that_are_no_mean_are_judged_by_groups_of_samples() -> None:
    generator = np.random.default_rng(3)
    length = generator.integers(5, 30, 500).astype(np.float64)
    fp32, int8 = (np.stack([generator.binomial(length.astype(int), share), length], axis=1) for share in (0.02, 0.03))
    metric = CharacterAccuracy()
    found = family(fp32, 0.02, metric)
    found.add("a", {"m": int8})
    assert len(found._losses["a"][0]) == 42
    draws = [generator.integers(0, 500, 500) for _ in range(2000)]
    expected = np.quantile([metric.value(fp32[draw]) - metric.value(int8[draw]) for draw in draws], 0.955)
    assert found.bounds("a")["m"] == pytest.approx(expected, rel=0.1)


def test_lower_is_better_and_given_baselines() -> None:
    fp32 = np.full(400, 0.1)
    worse = np.where(np.arange(400) % 2, 0.2, 0.1)
    errors = family(column(fp32), 0.06, ReferenceError())
    errors.add("a", {"m": column(worse)})
    assert 0.05 < errors.bounds("a")["m"] < 0.06 and errors.excess("a") <= 0
    assert family(column(fp32), 0.05, ReferenceError()).criteria["m"].limit < errors.bounds("a")["m"]
    given = Family({"m": Criterion(Accuracy(), None, 0.9, 0.05)})
    given.add("a", {"m": column(np.arange(1000) % 10 > 0)})
    # Nothing cancels out against a number: the model's own samples are drawn.
    assert given.bounds("a")["m"] == pytest.approx(1.6954 * 0.3 / math.sqrt(1000), rel=0.05)


def test_every_metric_must_keep_its_own_limit() -> None:
    ones = column(np.ones(1000))
    both = Family({"a": Criterion(Accuracy(), ones, 1.0, 0.05), "b": Criterion(Accuracy(), ones, 1.0, 0.01)})
    rows = column(np.arange(1000) >= 20)
    both.add("m", {"a": rows, "b": rows})
    assert both.excess("m") == pytest.approx((both.bounds("m")["b"] - 0.01) / 0.01) and both.bounds("m")["a"] < 0.05
    both.add("m", {"a": rows, "b": ones})
    assert both.excess("m") <= 0


def test_a_metric_that_is_not_defined_on_a_part_of_the_samples_is_never_sure() -> None:
    class Undefined(Accuracy):
        def value(self, rows: np.ndarray) -> float:
            return float("nan") if rows[0, 0] == 0 else float(rows[:, 0].mean() ** 2)

    found = family(column(np.ones(100)), 0.5, Undefined())
    found.add("a", {"m": column(np.arange(100) % 40 > 0)})
    assert found.excess("a") > 0 and found.samples_needed("a") is None


def test_rows_that_were_not_run_are_those_of_the_model_before() -> None:
    before = {"m": column(np.zeros(5))}
    assert replaced_rows(before, np.array([3, 1]), {"m": column(np.array([7, 8]))})["m"][:, 0].tolist() == [0, 8, 0, 7, 0]
    assert not before["m"].any()


def test_two_samples_more_count_as_much_as_one_sample_can() -> None:
    shares = losses(Criterion(Accuracy(), column(np.ones(10)), 1.0, 0.1), column(np.ones(10)))
    assert shares.tolist() == [0.0] * 10 + [1.0, -1.0]
    errors = losses(Criterion(ReferenceError(), column(np.zeros(2)), 0.0, 0.1), column(np.array([0.5, 3.0])))
    assert errors.tolist() == [0.5, 3.0, 3.0, -3.0]
