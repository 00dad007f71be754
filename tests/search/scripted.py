"""Sessions whose outcomes a test decides, for what a strategy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from stages.configuration import schema
from stages.search.candidates import Candidate, candidate_key
from stages.search.evaluator import Outcome, Task, all_positions, task_key
from stages.search.problem import Problem
from stages.search.reversion.search import Reversion
from stages.search.session import Session
from tests.search.problems import small_candidate
from tests.search.reverting import Searched, budget_of, culprit_problem

LAYERS = frozenset({"conv0", "conv1", "conv2", "conv3", "conv4", "conv5", "head"})
COUNT = 80

Wrong = Callable[[Candidate, frozenset[str]], int]


@dataclass
class Scripted:
    """Stands in for a `Session`: sample p is classified wrongly where p is less than what `wrong` says of the candidate."""

    wrong: Wrong
    problem: Problem = field(default_factory=lambda: culprit_problem(COUNT))
    spent_seconds: float = 0.0
    seconds: float = 1.0  # per evaluation
    asked: list[Task] = field(default_factory=list)
    answered: list[Outcome] = field(default_factory=list)

    def evaluate(self, tasks: Sequence[Task], done: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
        outcomes = [self._outcome(task) for task in tasks]
        self.asked += tasks
        self.answered += outcomes
        self.spent_seconds += self.seconds * len(tasks)
        return outcomes

    def _outcome(self, task: Task) -> Outcome:
        positions = all_positions(self.problem, task)
        right = np.array([float(position >= self.wrong(task.candidate, returned(task.candidate))) for position in positions])[:, None]
        rows = {"accuracy": right, "error": 1 - right}
        for end in range(task.stop.chunk, len(positions) + 1, task.stop.chunk) if task.stop else ():
            part = {name: values[:end] for name, values in rows.items()}
            if task.stop is not None and task.stop.hopeless(self.problem, part, positions):
                return Outcome(task_key(task), candidate_key(task.candidate), part, end == len(positions), self.seconds)
        return Outcome(task_key(task), candidate_key(task.candidate), rows, True, self.seconds)

    def whole(self) -> list[frozenset[str]]:
        """What was reverted in each model that was asked for on all samples."""
        return [returned(task.candidate) for task in self.asked if len(all_positions(self.problem, task)) == COUNT]


def returned(candidate: Candidate) -> frozenset[str]:
    """The layers that a candidate has in floating point."""
    return LAYERS - {place.name for quantizer in candidate.plan.quantizers for place in quantizer.layers}


def run_script(
    wrong: Wrong,
    allowed: float = 0.1,
    *,
    mixed: Candidate | None = None,
    seconds: float = 1.0,
    effects: Mapping[str, float] | None = None,
    **settings: Any,
) -> tuple[Searched, Scripted]:
    """Search with scripted outcomes for at most a share `allowed` of wrong answers. effects: of layers, as `evaluate` measures them."""
    session = Scripted(wrong, seconds=seconds)
    budget = budget_of(session.problem, accuracy=allowed)
    aware = schema.AccuracyAware(enabled=True, **{"acceptance": "point"} | settings)
    search = Reversion(cast(Session, session), budget, aware, tuple(range(COUNT)), effects=dict(effects or {}))
    return Searched(search, search.run(small_candidate(session.problem), None, mixed), cast(Session, session)), session


def additive(**gains: int) -> Wrong:
    """40 wrong answers, less what each reverted layer brings."""
    return lambda candidate, reverted: max(0, 40 - sum(gains.get(layer, 0) for layer in reverted))
