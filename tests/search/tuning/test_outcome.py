"""What is reported of a search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stages.search.tuning.objective import Score
from stages.search.tuning.outcome import best_so_far, explained, importance, trials
from stages.search.tuning.search import Search


def test_best_so_far_is_that_of_the_trials_before(finished: Search) -> None:
    """The lowest loss of all, and the highest speed-up of those within the budget, which is 5 %."""
    known = [(50.0, 0.01, 1.1, True), (20.0, 0.30, 9.0, True), (30.0, 0.05, 1.4, True), (10.0, 0.0, 2.0, False), (90.0, 0.02, 1.2, True)]
    trials = [
        replace(finished.trials[0], loss=loss, complete=complete, score=Score(lost, speed_up, 1.0))
        for loss, lost, speed_up, complete in known
    ]
    assert [(row["trial"], row["loss"], row["speed_up"]) for row in best_so_far(trials, finished)] == [
        (1, 50.0, 1.1),
        (2, 20.0, 1.1),
        (3, 20.0, 1.4),
        (4, 10.0, 1.4),
        (5, 10.0, 1.4),
    ]
    assert best_so_far(trials[1:2], finished) == [{"trial": 1, "loss": 20.0, "speed_up": None}]


def test_table_says_what_differs_from_the_base(finished: Search) -> None:
    rows = trials(finished)
    assert [row["trial"] for row in rows] == list(range(1, 9))
    assert (rows[0]["choices"], rows[1]["choices"]) == ("", "conv2.quantize=float")
    assert rows[0]["error"] == pytest.approx(finished.trials[0].values["error"])


def test_importance_finds_what_matters(finished: Search) -> None:
    generator = np.random.default_rng(0)
    search = replace(finished, trials=list(finished.trials))
    for _ in range(60):
        proposal = {name: str(generator.integers(2)) for name in ("matters", "some", "nothing")}
        loss = 10 * int(proposal["matters"]) + int(proposal["some"]) + generator.normal()
        search.trials.append(replace(finished.trials[0], proposal=proposal, loss=float(loss)))
    del search.trials[: len(finished.trials)]
    rows = {row["parameter"]: row for row in importance(search)}
    assert next(iter(rows)) == "matters"
    assert rows["matters"]["importance"] > 0.9
    assert rows["matters"]["best_choice"] == "0"
    assert rows.get("nothing", {"importance": 0.0})["importance"] < 0.1


def test_explained_variance() -> None:
    assert explained([np.zeros(3), np.ones(3)]) == 1.0
    assert explained([np.array([0.0, 1.0]), np.array([0.0, 1.0])]) <= 0.0
    assert explained([np.ones(4)]) == 0.0
    assert explained([np.ones(2), np.ones(2)]) == 0.0
