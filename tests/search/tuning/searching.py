"""Searches over a small problem, for tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from stages.configuration import schema
from stages.search.candidates import candidate_key
from stages.search.evaluator import Outcome, Task, evaluate
from stages.search.journal import Journal
from stages.search.problem import Problem
from stages.search.session import Session
from stages.search.tuning import search as tuning
from stages.search.tuning.objective import Target
from stages.search.tuning.search import FULL, POT_LOSS, Goal, Search
from stages.search.tuning.space import Space
from stages.search.tuning.tpe import Settings

SAMPLES = 60
GOAL = Goal(POT_LOSS, Target(accuracy_loss=0.05, quantized_weight=1.0), (("error", 1.0),), tuple(range(SAMPLES)), max_trials=8)


class Counting:
    """Evaluates at once, counts, and is killed after so many."""

    def __init__(self, problem: Problem, allowed: float = math.inf) -> None:
        self.problem, self.allowed, self.tasks = problem, allowed, list[Task]()

    def __call__(self, task: Task) -> Future[Outcome]:
        if len(self.tasks) >= self.allowed:
            raise KeyboardInterrupt
        self.tasks.append(task)
        future: Future[Outcome] = Future()
        future.set_result(evaluate(self.problem, task))
        return future


@contextmanager
def searching(
    problem: Problem, space: Space, folder: Path, goal: Goal = GOAL, submit: Any = None, settings: Settings | None = None
) -> Iterator[Search]:
    with Journal(problem.key, "tune", folder) as journal:
        session = Session(problem, journal, submit or Counting(problem))
        yield Search(session, space, goal, settings or Settings(0, n_initial_point=3), schema.BiasCorrection())


def starts(search: Search) -> list[tuning.Start]:
    return [search.start(FULL, search.space.base_proposal()), search.start("without conv2", search.space.without(["conv2"]))]


def outline(search: Search) -> list[Any]:
    """What must be the same of the trials, but for what took time."""
    return [(trial.label, candidate_key(trial.candidate), astuple(trial.score), trial.loss, trial.complete) for trial in search.trials]


def ended(problem: Problem, space: Space, folder: Path, **changes: Any) -> Search:
    with searching(problem, space, folder, replace(GOAL, **changes)) as search:
        search.run(starts(search))
    return search
