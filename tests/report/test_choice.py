"""The rule by which a model is chosen: the fastest of those that lose nothing that matters."""

from __future__ import annotations

from typing import Any

import pytest

from stages.report.choice import Candidate, Loss, choose, equally_fast, losses

BUDGET: dict[str, Any] = {"maximal_drop": 0.01, "drop_type": "absolute", "metrics": []}


def metric(drop: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {
        "higher_is_better": True,
        "share": True,
        "fp32": 0.9,
        "int8": 0.9 - drop,
        "drop": drop,
        "drop_low": low,
        "drop_high": high,
    } | more


def loss(drop: float, low: float | None, high: float | None, allowed: float | None = 0.01, samples: int = 1000, **more: Any) -> Loss:
    return Loss("top_1", metric(drop, low, high, **more), allowed, samples)


def candidate(name: str, drop: float, ratio: float | None, spread: float = 0.02, **more: Any) -> Candidate:
    known = None if ratio is None else {"median": ratio, "low": ratio - spread, "high": ratio + spread}
    return Candidate(name, (loss(drop, drop - 0.005, drop + 0.005),), known, **more)


@pytest.mark.parametrize(
    ("drop", "low", "high", "within", "clear", "acceptable"),
    [
        (0.008, 0.002, 0.014, True, True, True),  # worse for sure, but within
        (0.02, -0.01, 0.05, False, False, True),  # maybe nothing at all
        (0.02, 0.01, 0.03, False, True, False),
        (-0.01, -0.02, -0.001, True, False, True),
        (0.02, None, None, False, True, False),  # without an interval its own value counts
    ],
)
def test_what_a_drop_means(drop: float, low: float | None, high: float | None, within: bool, clear: bool, acceptable: bool) -> None:
    found = loss(drop, low, high)
    assert (found.within, found.clear, found.acceptable) == (within, clear, acceptable)


def test_samples_that_would_do() -> None:
    # An interval of 4 points on 100 samples: of 1 point on 16 times as many.
    unclear = loss(0.01, -0.01, 0.03, samples=100)
    assert unclear.undecided and unclear.samples_needed == 1600
    assert not loss(0.05, 0.03, 0.07, samples=100).undecided  # clearly beyond
    assert not loss(-0.03, -0.05, -0.01, samples=100).undecided  # clearly within
    assert not loss(0.004, 0.0, 0.0101).undecided or loss(0.004, 0.0, 0.0101).samples_needed > 1000
    assert not loss(0.005, 0.001, 0.0105).undecided  # no wider than the budget
    # Where no sample differs, the rule of three: 40 samples leave 7.5 points open, 300 leave 1 on either side.
    alike = loss(0.0, 0.0, 0.0, samples=40)
    assert alike.bounds == (-0.075, 0.075) and alike.undecided and alike.samples_needed == 600
    assert not loss(0.0, 0.0, 0.0, samples=600).undecided


def test_the_fastest_of_those_that_keep_the_budget() -> None:
    fast, right, slow = candidate("fast", 0.03, 1.5), candidate("right", 0.002, 1.3), candidate("slow", 0.0, 1.1)
    assert choose([fast, right, slow]) == right
    assert choose([fast]) is None
    assert choose([]) is None


def test_of_equally_fast_ones_the_more_accurate() -> None:
    one, other = candidate("one", 0.009, 1.32), candidate("other", 0.001, 1.30)
    assert equally_fast(one, other) and choose([one, other]) == other
    # Ranges that overlap because nothing was measured well are no reason to give a third of the speed away.
    vague, slow = candidate("vague", 0.009, 1.6, 0.5), candidate("slow", 0.0, 1.2, 0.5)
    assert not equally_fast(vague, slow) and choose([vague, slow]) == vague


def test_finalists_are_ranked_by_what_was_measured_side_by_side() -> None:
    final = {name: {"median": ratio, "low": ratio - 0.01, "high": ratio + 0.01} for name, ratio in (("one", 1.2), ("other", 1.4))}
    one, other = candidate("one", 0.001, 1.5, final=final["one"]), candidate("other", 0.001, 1.3, final=final["other"])
    assert choose([one, other]) == other
    assert choose([one, other, candidate("third", 0.0, 1.6)]) == other  # was not among them: jobs are timed minutes apart


def test_a_model_that_the_device_does_not_compute_is_not_chosen() -> None:
    wrong, right = candidate("wrong", 0.0, 2.0, faulty=True), candidate("right", 0.0, 1.1)
    assert choose([wrong, right]) == right


def test_a_search_whose_budget_holds_is_believed() -> None:
    kept = candidate("kept", 0.013, 1.2, kept=True)
    assert choose([kept, candidate("beyond", 0.02, 1.4)]) == kept


def test_without_a_benchmark_accuracy_decides() -> None:
    assert choose([candidate("a", 0.008, None), candidate("b", 0.001, None)]) == candidate("b", 0.001, None)


def test_the_budget_of_each_metric() -> None:
    metrics = {
        "top_5": metric(0.02, 0.01, 0.03),
        "top_1": metric(0.02, 0.01, 0.03),
        "error": metric(0.04, 0.03, 0.05, higher_is_better=False, share=False, fp32=0.0),
    }
    found = losses(metrics, 100, BUDGET, "top_1")
    assert [(entry.name, entry.allowed) for entry in found] == [("top_1", 0.01), ("top_5", 0.01), ("error", None)]
    named = BUDGET | {"metrics": [{"name": "error", "maximal_drop": 0.1}, {"name": "top_1", "maximal_drop": None}]}
    assert [(entry.name, entry.allowed) for entry in losses(metrics, 100, named, "top_1")] == [("top_1", 0.01), ("error", 0.1)]
    relative = BUDGET | {"drop_type": "relative"}
    assert losses(metrics, 100, relative)[0].allowed == pytest.approx(0.009)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (loss(0.031, 0.017, 0.045), "top_1 drops by 3.10 points [1.70, 4.50]"),
        (loss(0.002, -0.003, 0.007), "no clear drop of top_1: 0.20 points [-0.30, 0.70]"),
        (loss(-0.02, -0.03, -0.01), "top_1 is better by 2.00 points [1.00, 3.00]"),
        (loss(0.02, None, None), "top_1 drops by 2.00 points"),
        (loss(0.04, 0.03, 0.05, share=False, higher_is_better=False), "top_1 rises by 0.04 [0.03, 0.05]"),
    ],
)
def test_how_a_loss_reads(found: Loss, expected: str) -> None:
    assert found.shown() == expected
