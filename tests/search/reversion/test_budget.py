"""The accuracy budget: directions, relative limits, several metrics, and when an evaluation can be given up."""

from __future__ import annotations

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.metrics import Accuracy, Metric, ReferenceError
from stages.search.reversion.budget import BeyondReach, Budget, Goal, divide, drop_interval, make_goal
from tests.search.reverting import culprit_problem


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def goal(metric: Metric, baseline: float, limit: float, name: str = "m", kind: str = "absolute") -> Goal:
    return make_goal(name, metric, baseline, limit, kind)


def test_a_drop_is_what_got_worse_in_either_direction() -> None:
    assert goal(Accuracy(), 0.9, 0.01).drop(0.85) == pytest.approx(0.05)
    assert goal(ReferenceError(), 0.1, 0.01).drop(0.15) == pytest.approx(0.05)
    assert goal(ReferenceError(), 0.1, 0.01).drop(0.05) == pytest.approx(-0.05)


@pytest.mark.parametrize(("metric", "value"), [(Accuracy(), 0.9 - 0.01), (ReferenceError(), 0.9 + 0.01)])
def test_the_limit_itself_keeps_the_budget_whatever_floating_point_makes_of_it(metric: Metric, value: float) -> None:
    assert goal(metric, 0.9, 0.01).excess(value) <= 0
    worse = -1e-6 if metric.higher_is_better else 1e-6
    assert goal(metric, 0.9, 0.01).excess(value + worse) > 0


def test_models_that_win_what_they_lose_disagree_with_fp32() -> None:
    budget = Budget((goal(Accuracy(), 0.5, 0.1, "a"), goal(ReferenceError(), 0.0, 2.0, "b")))
    fp32 = {"a": rows(1, 1, 0, 0), "b": rows(0, 0, 0, 0)}
    swapped = {"a": rows(0, 1, 1, 0), "b": rows(1, 0, 0, 0)}
    assert budget.disagreement(fp32, fp32) == 0.0
    assert budget.disagreement(fp32, swapped) == pytest.approx(0.5 / 0.1 + 0.25 / 2.0)


def test_a_relative_limit_is_a_share_of_the_baselines_magnitude() -> None:
    assert goal(Accuracy(), 0.8, 0.05, kind="relative").limit == pytest.approx(0.04)
    assert goal(ReferenceError(), -0.8, 0.05, kind="relative").limit == pytest.approx(0.04)
    assert goal(Accuracy(), 0.8, 0.05).limit == 0.05


def test_a_baseline_of_zero_has_an_absolute_budget_and_no_relative_one() -> None:
    zero = goal(ReferenceError(), 0.0, 0.02)
    assert zero.excess(0.02) == 0.0
    assert zero.excess(0.04) == pytest.approx(1.0)
    assert goal(ReferenceError(), 0.0, 0.0).excess(0.5) == 0.5  # nothing is allowed, and nothing to compare with
    with pytest.raises(UserError, match=r"drop_type: 'relative' is not allowed as the baseline of top_1 is 0"):
        make_goal("top_1", Accuracy(), 0.0, 0.01, "relative")
    message = r"^accuracy_aware\.metrics: baseline_value of top_1: 0 is not allowed; expected a number of which a drop can be a share$"
    with pytest.raises(UserError, match=message):
        make_goal("top_1", Accuracy(), 0.0, 0.01, "relative", given=True)


def test_the_metric_that_is_worst_off_decides() -> None:
    budget = Budget((goal(Accuracy(), 1.0, 0.1, "a"), goal(ReferenceError(), 0.0, 0.5, "b")))
    mild = {"a": rows(1, 1, 1, 0), "b": rows(0.6, 0.6, 0.6, 0.6)}  # 0.25 of 0.1, and 0.6 of 0.5
    assert budget.excess(mild) == pytest.approx(1.5)
    assert budget.worst(mild).metric == "a"
    assert budget.drops(mild) == {"a": pytest.approx(0.25), "b": pytest.approx(0.6)}
    assert budget.worst({"a": rows(1, 1), "b": rows(2, 2)}).metric == "b"
    assert budget.excess({"a": rows(1, 1), "b": rows(0.5, 0.5)}) <= 0


def test_bars_are_where_the_excess_is_reached() -> None:
    budget = Budget((goal(Accuracy(), 0.9, 0.1, "a"), goal(ReferenceError(), 0.2, 0.5, "b")))
    for excess in (0.0, 1.5):
        for one, (name, bar) in zip(budget.goals, budget.bars(excess), strict=True):
            assert name == one.metric
            assert one.excess(bar) == pytest.approx(excess)
            assert one.excess(bar - 0.01 * one.sign) > excess


def test_hopeless_is_what_fp32_could_not_save_on_the_rest() -> None:
    problem = culprit_problem(40)
    positions = tuple(range(20))  # FP32 is right on all of them
    stop = BeyondReach((("accuracy", 0.9),))
    assert not stop.hopeless(problem, {"accuracy": rows(0, 0, 1)}, positions)  # 18 of 20 are still possible
    assert stop.hopeless(problem, {"accuracy": rows(0, 0, 0)}, positions)
    assert BeyondReach((("accuracy", 0.0), ("error", 0.1))).hopeless(problem, {"accuracy": rows(1), "error": rows(2.1)}, positions)
    assert not BeyondReach((("error", 0.1),)).hopeless(problem, {"error": rows(1.9)}, positions)


def test_samples_are_divided_at_random_and_without_overlap() -> None:
    parts = divide(100, 0.2, 0.5, seed=1)
    assert (len(parts.search), len(parts.held_out)) == (40, 20)
    assert not set(parts.search) & set(parts.held_out)
    assert list(parts.search) == sorted(parts.search)
    assert parts.held_out not in (tuple(range(20)), tuple(range(80, 100)))
    assert divide(100, 0.2, 0.5, seed=1) == parts != divide(100, 0.2, 0.5, seed=2)
    assert divide(10, 0.0, 1.0, seed=0) == (tuple(range(10)), ())
    assert len(divide(1, 0.9, 0.1, seed=0).search) == 1


def test_the_interval_against_a_given_baseline_is_wider_than_that_of_a_pair() -> None:
    generator = np.random.default_rng(0)
    fp32 = (generator.random(400) < 0.9).astype(float)[:, None]
    int8 = fp32.copy()
    int8[:4] = 0
    one = goal(Accuracy(), float(fp32.mean()), 0.01)
    paired, alone = (drop_interval(one, values, int8, 0.95, 0) for values in (fp32, None))
    assert paired.value == pytest.approx(alone.value) == pytest.approx(float(fp32.mean() - int8.mean()))
    assert paired.low is not None and paired.high is not None and alone.low is not None and alone.high is not None
    assert alone.low <= alone.value <= alone.high
    assert alone.high - alone.low > 2 * (paired.high - paired.low)


def test_a_budget_is_surely_kept_where_the_interval_is_within_it() -> None:
    fp32, rows = np.ones((200, 1)), np.ones((200, 1))
    rows[:4] = 0.0  # a drop of 2 points, on other samples up to 4
    assert [one_goal(limit).sure({"accuracy": fp32}, {"accuracy": rows}, 0.95, 0) for limit in (0.01, 0.02, 0.03, 0.05)] == [
        *(False, False, False),
        True,
    ]
    # Of a baseline that is a number, nothing cancels out: FP32 may have done worse on these samples, too.
    assert not one_goal(0.05, given=True).sure({"accuracy": rows}, {"accuracy": fp32 * 0.5}, 0.95, 0)
    lower = Budget((make_goal("error", ReferenceError(), 0.5, 0.1, "absolute", given=True),))
    errors = np.full((200, 1), 0.55)
    assert lower.sure({}, {"error": errors}, 0.95, 0)
    assert not lower.sure({}, {"error": np.where(np.arange(200)[:, None] < 20, 1.0, 0.55)}, 0.95, 0)


def one_goal(limit: float, *, given: bool = False) -> Budget:
    """A budget of accuracy alone, from a baseline of 1."""
    return Budget((make_goal("accuracy", Accuracy(), 1.0, limit, "absolute", given=given),))
