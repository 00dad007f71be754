"""Trials are timed where, when and how the benchmark's settings say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.runtime import engine
from stages.search.candidates import Candidate
from stages.search.evaluator import Task, Timing, build_candidate, task_key, time_models
from stages.search.problem import Problem
from stages.search.tuning.objective import Target
from stages.search.tuning.space import Space
from tests.search.tuning.searching import GOAL, Counting, ended, searching, starts


def test_trials_are_timed_against_fp32(problem: Problem, space: Space, tmp_path: Path) -> None:
    timing = Timing(seconds=0.05)
    search = ended(problem, space, tmp_path, timing=timing, max_trials=2)
    for trial in search.trials:
        assert trial.speed_up is not None
        assert trial.latency_ms is not None
        assert trial.score.speed_up == trial.speed_up.median
    rounds = search.finals()
    assert rounds.keys() == {"0", "1", "default"}
    assert len({len(times) for times in rounds.values()}) == 1


def test_what_was_given_up_is_not_timed(problem: Problem, space: Space, tmp_path: Path) -> None:
    changes = {"baselines": (("error", 1e-3),), "target": Target(accuracy_loss=0.0), "stop_error": 0.05}
    search = ended(problem, space, tmp_path, timing=Timing(seconds=0.05), max_trials=2, **changes)
    assert search.trials[1].speed_up is None
    assert search.trials[1].score.speed_up == 1.0


@pytest.mark.parametrize("here", [True, False])
def test_timing_happens_where_it_is_asked_for(problem: Problem, space: Space, tmp_path: Path, here: bool) -> None:
    counting = Counting(problem)
    goal = replace(GOAL, timing=Timing(seconds=0.02), time_here=here, max_trials=2)
    with searching(problem, space, tmp_path, goal, counting) as search:
        search.run(starts(search))
    assert sum(task.timing is not None for task in counting.tasks) == (0 if here else 2)
    assert all(trial.speed_up is not None for trial in search.trials)


def test_settings_of_the_benchmark(problem: Problem, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    real = engine.core

    class Core:
        def read_model(self, *arguments: Any) -> Any:
            return real().read_model(*arguments)

        def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
            seen.append((str(model.inputs[0].get_partial_shape()), properties))
            return real().compile_model(model, device, properties)

    monkeypatch.setattr("stages.runtime.engine.core", Core)
    fresh = replace(problem, key="timed")
    model, _ = build_candidate(problem, Candidate(space.offer.plan))
    rounds = time_models(fresh, {"it": model.clone()}, Timing(0.02, threads=1, streams=1, hint="THROUGHPUT", requests=2, batch=3))
    assert rounds.keys() == {"default", "it"}
    for shape, properties in seen:
        assert shape == "[3,3,8,8]"
        expected = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": 2}
        assert {key: properties.get(key) for key in expected} == expected
    seen.clear()
    time_models(fresh, {"it": model.clone()}, Timing(0.02))
    assert all(properties["PERFORMANCE_HINT"] == "LATENCY" and shape == "[1,3,8,8]" for shape, properties in seen)
    long = time_models(fresh, {"it": model.clone()}, Timing(0.5))
    assert len(long["it"]) > len(rounds["it"])


@pytest.mark.parametrize(("hint", "timed"), [("LATENCY", "one at a time"), ("THROUGHPUT", "all at once")])
def test_the_hint_says_what_is_timed(problem: Problem, space: Space, monkeypatch: pytest.MonkeyPatch, hint: str, timed: str) -> None:
    monkeypatch.setattr("stages.search.evaluator.latency.latency", lambda *_: "one at a time")
    monkeypatch.setattr("stages.search.evaluator.latency.saturated", lambda *_: "all at once")
    found: Any = time_models(problem, {"it": build_candidate(problem, Candidate(space.offer.plan))[0]}, Timing(0.02, hint=hint))
    assert found == timed


def test_timings_are_told_apart_in_the_journal(space: Space) -> None:
    candidate = Candidate(space.offer.plan)
    timings = [Timing(), Timing(threads=1), Timing(streams=1), Timing(hint="THROUGHPUT"), Timing(requests=2), Timing(batch=2)]
    assert len({task_key(Task(candidate, (), timing=timing)) for timing in timings}) == len(timings)
