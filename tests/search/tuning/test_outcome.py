"""What is reported of a search."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common import artifacts
from stages.configuration.schema import Evaluate
from stages.measurement.latency import Spread
from stages.search.evaluator import Timing
from stages.search.tuning.objective import Score, Target
from stages.search.tuning.outcome import best_so_far, explained, importance, latency_json, report, result_json, trade_off, trials
from stages.search.tuning.search import FULL, Search
from tests import built


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


# ------------------------------------------------------------------------------------------------ whole results


def scripted(finished: Search, **goal: Any) -> Search:
    """The first two trials of a search, everything quantized and without conv2, with numbers that are easy to check."""
    full, without, other = (
        replace(
            finished.trials[place],
            label=label,
            score=Score(loss, speed_up, quantized),
            complete=complete,
            speed_up=Spread(speed_up, speed_up - 0.1, speed_up + 0.1),
            latency_ms=Spread(4.0 / speed_up, 0.0, 9.0),
            values={"accuracy": accuracy, "error": 0.25},
        )
        for place, label, loss, speed_up, quantized, accuracy, complete in (
            (0, FULL, 0.08, 2.0, 1.0, 0.7, True),
            (1, "without conv2", 0.02, 1.6, 0.8, 0.9, True),
            (1, "TPE", 0.01, 1.5, 0.8, 0.85, False),
        )
    )
    worse = replace(without, label="random", score=Score(0.03, 1.2, 0.8), values={"accuracy": 0.88, "error": 0.25})
    return replace(finished, trials=[full, without, other, worse], ended="4 trials", goal=replace(finished.goal, **goal))


def test_the_result_is_the_best_trial_and_what_it_loses_on_all_samples(finished: Search) -> None:
    search = scripted(finished, target=Target(accuracy_loss=0.05, speed_up=1.5))
    problem = search.session.problem
    rows = {"accuracy": problem.fp32["accuracy"].copy(), "error": np.full((len(problem.samples), 1), 0.25)}
    right = np.flatnonzero(rows["accuracy"][:, 0])
    rows["accuracy"][right[:3]] = 0.0
    config = dataclasses.replace(built.config(), evaluate=Evaluate(primary_metric="accuracy"))
    found = result_json(config, search, rows, 0.04)
    assert (found["trials"], found["given_up"], found["ended"], found["enabled"]) == (4, 1, "4 trials", True)
    assert found["parameters"] == len(list(search.space.parameters()))
    assert found["budget"] == {"accuracy_loss": 0.05, "latency_reduce": 1.5, "metrics": ["error"], "samples": 60, "all_samples": 60}
    best = found["best"]
    layers = [name for unit in search.space.units for name in unit.layers]
    assert (best["trial"], best["label"], best["accuracy_loss"], best["accuracy_loss_in_search"]) == (2, "without conv2", 0.04, 0.02)
    assert (best["quantized_layers"], best["layers"], best["float_layers"]) == (0.8, len(layers), ["conv2"])
    assert best["changed"] == "conv2.quantize=float"
    assert (best["speed_up"]["median"], best["latency_ms"]["median"]) == (1.6, 2.5)
    assert best["metrics"]["accuracy"]["drop"] == pytest.approx(3 / len(problem.samples))
    assert (best["within_budget"], best["target_met"]) == (True, True)
    assert report(found)["holds"] == 1 and report(found)["accuracy.drop"] == best["metrics"]["accuracy"]["drop"]
    # What counts is the loss on all samples, not that in the search; and the speed.
    beyond = result_json(config, search, rows, 0.06)
    assert (beyond["best"]["within_budget"], beyond["best"]["target_met"], report(beyond)["holds"]) == (False, False, 0)
    slow = result_json(config, scripted(finished, target=Target(accuracy_loss=0.05, speed_up=1.7)), rows, 0.04)["best"]
    assert (slow["within_budget"], slow["target_met"]) == (True, False)


def test_the_frontier_is_of_complete_trials_and_the_metric_that_of_all_samples(
    finished: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = finished.session.problem
    fp32 = problem.fp32["accuracy"][:, 0]
    seen = tuple(np.flatnonzero(fp32)[:10]) + tuple(np.flatnonzero(1 - fp32)[:2])  # FP32 has 10 of these 12 right
    search = scripted(finished, positions=seen)
    shift = fp32.mean() - 10 / 12
    expected = [
        (FULL, 1, 2.0, 0.7 + shift, "frontier"),
        ("tuned", 2, 1.6, 0.9 + shift, "frontier"),
        ("random", 4, 1.2, 0.88 + shift, "trial"),
    ]

    def rows() -> list[tuple[Any, ...]]:
        return [tuple(row[key] for key in ("model", "trial", "speed_up", "accuracy", "kind")) for row in trade_off(search)]

    assert [(*row[:3], pytest.approx(row[3]), row[4]) for row in rows()] == expected
    # Where times are known, the models that evaluate measured are shown beside them: INT8 is the first trial.
    search = replace(search, goal=replace(search.goal, timing=Timing()))
    monkeypatch.chdir(tmp_path)
    places = [("FP32 (f32)", 8.0, 0.9), ("FP32 (bf16, default)", 6.0, 0.89), ("INT8", 3.0, 0.7)]
    artifacts.folder("evaluate").mkdir(parents=True)
    written = [{"model": model, "latency_ms": latency, "accuracy": accuracy} for model, latency, accuracy in places]
    artifacts.write_json(artifacts.folder("evaluate") / "accuracy_speed.json", written)
    assert rows()[3:] == [("FP32 (f32)", None, 0.75, 0.9, "reference"), ("FP32 (bf16, default)", None, 1.0, 0.89, "reference")]


def test_latencies_are_those_of_the_finals(finished: Search) -> None:
    search = scripted(finished)
    assert latency_json(search) == {}
    search = replace(search, final_rounds={"default": [0.008] * 3, "0": [0.005] * 3, "1": [0.002] * 3, "3": [0.004] * 3})
    found = latency_json(search)
    assert found["rounds"] == 3
    # The best one, and what it is compared with: FP32 and the first trial, but no other finalist.
    medians = {key: {name: entry["median"] for name, entry in found[key].items()} for key in ("latency_ms", "speed_up")}
    assert medians["latency_ms"] == pytest.approx({"default": 8.0, FULL: 5.0, "best": 2.0})
    assert medians["speed_up"] == pytest.approx({"default": 4.0, FULL: 2.5})
