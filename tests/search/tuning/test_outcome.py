"""What is reported of a search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stages.search.tuning.outcome import best_so_far, explained, importance, trials
from stages.search.tuning.search import Search


def test_best_so_far_never_gets_worse(finished: Search) -> None:
    rows = best_so_far(finished.trials, finished)
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(min(trial.loss for trial in finished.trials))


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
