"""The accuracy budget: how far each metric may fall, and how far a model is from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.measurement.confidence import RESAMPLES, Drop, paired_drop
from stages.runtime.metrics import Metric
from stages.search.acceptance import Criterion
from stages.search.evaluator import Rows
from stages.search.problem import Problem

ROUNDING = 1e-9  # 0.90 - 0.89 is more than 0.01 in floating point


@dataclass(frozen=True)
class Goal:
    """One metric's part of the budget.

    Attributes:
        metric: Its name.
        scorer: The metric, bound to the model.
        baseline: What the floating-point model reaches.
        limit: By how much, in the metric's own unit, a model may be worse.
        given: Whether the baseline is a number of the user's, and not what FP32 reaches on the samples.
    """

    metric: str
    scorer: Metric
    baseline: float
    limit: float
    given: bool = False

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return 1.0 if self.scorer.higher_is_better else -1.0

    @property
    def unit(self) -> float:
        """What drops of different metrics are measured in to be compared: the limit, or the baseline where nothing is allowed."""
        return self.limit or abs(self.baseline) or 1.0

    def drop(self, value: float) -> float:
        """How much worse than the baseline `value` is; negative when it is better."""
        return self.sign * (self.baseline - value) + 0.0  # no -0.0

    def excess(self, value: float) -> float:
        """How far `value` is beyond the limit, in units; at most 0 where the budget holds."""
        over = self.drop(value) - self.limit
        if over <= ROUNDING * max(abs(self.baseline), abs(value), self.limit):
            over = min(over, 0.0)
        return over / self.unit + 0.0


@dataclass(frozen=True)
class Budget:
    """All goals; a model keeps the budget when it keeps every one."""

    goals: tuple[Goal, ...]

    def values(self, rows: Rows) -> dict[str, float]:
        """The metrics over samples."""
        return {goal.metric: goal.scorer.value(rows[goal.metric]) for goal in self.goals}

    def drops(self, rows: Rows) -> dict[str, float]:
        """By metric, how much worse than the baseline."""
        return {goal.metric: goal.drop(goal.scorer.value(rows[goal.metric])) for goal in self.goals}

    def excess(self, rows: Rows) -> float:
        """The largest of the goals' excesses: models are compared by the metric that is worst off. At most 0: the budget holds."""
        return max(goal.excess(goal.scorer.value(rows[goal.metric])) for goal in self.goals)

    def disagreement(self, fp32: Rows, rows: Rows) -> float:
        """How much samples come out otherwise than with FP32 on average, better ones too, in units.

        Tells models apart whose metrics are equal: one that wins as many samples as it loses is further from FP32 than one that does
        neither.
        fp32: of the same samples.
        """
        scores = ((goal, goal.scorer.score(fp32[goal.metric]), goal.scorer.score(rows[goal.metric])) for goal in self.goals)
        return round(sum(float(np.mean(np.abs(reference - own))) / goal.unit for goal, reference, own in scores), 9)

    def sure(self, fp32: Rows, rows: Rows, confidence: float, seed: int) -> bool:
        """Whether even the upper ends of the drops' confidence intervals keep it. fp32: of the same samples."""
        for goal in self.goals:
            baseline = None if goal.given else fp32[goal.metric]
            high = drop_interval(goal, baseline, rows[goal.metric], confidence, seed).high
            if high is None or goal.excess(goal.baseline - goal.sign * high) > 0:
                return False
        return True

    def criteria(self, fp32: Rows) -> dict[str, Criterion]:
        """The goals as what a model chosen among many is accepted by. fp32: of the samples that it is chosen on."""
        return {
            goal.metric: Criterion(goal.scorer, None if goal.given else fp32[goal.metric], goal.baseline, goal.limit) for goal in self.goals
        }

    def bars(self, excess: float) -> tuple[tuple[str, float], ...]:
        """By metric, the value that a model must reach for its excess not to be more than this."""
        return tuple((goal.metric, goal.baseline - goal.sign * (goal.limit + excess * goal.unit)) for goal in self.goals)

    def worst(self, rows: Rows) -> Goal:
        """The goal that is furthest from being kept; of equals the first."""
        return max(self.goals, key=lambda goal: goal.excess(goal.scorer.value(rows[goal.metric])))


def make_goal(name: str, metric: Metric, baseline: float, maximal_drop: float, drop_type: str, *, given: bool = False) -> Goal:
    """A goal from the configuration. drop_type: `absolute`, or `relative` to the magnitude of the baseline.

    Raises:
        UserError: a relative drop from a baseline of zero, which would allow nothing whatever maximal_drop says.
    """
    if drop_type != "relative":
        return Goal(name, metric, baseline, maximal_drop, given)
    if baseline == 0 and given:
        expected = "a number of which a drop can be a share"
        raise UserError(f"accuracy_aware.metrics: baseline_value of {name}: 0 is not allowed; expected {expected}")
    if baseline == 0:
        raise UserError(f"accuracy_aware.drop_type: 'relative' is not allowed as the baseline of {name} is 0; expected absolute")
    return Goal(name, metric, baseline, maximal_drop * abs(baseline), given)


class Parts(NamedTuple):
    """Positions of validation samples, ascending."""

    search: tuple[int, ...]  # what models are compared on
    held_out: tuple[int, ...]  # what the chosen one is confirmed on


def divide(count: int, held_out_ratio: float, subset_ratio: float, seed: int) -> Parts:
    """Draw the held-out samples, and from the others those that are compared.

    held_out_ratio: share of all samples. subset_ratio: share of the others. At least one sample is compared.
    """
    order = np.random.default_rng([3, seed]).permutation(count)
    held_out, others = np.split(order, [int(count * held_out_ratio)])
    return Parts(*(tuple(sorted(int(index) for index in part)) for part in (others[: max(1, int(len(others) * subset_ratio))], held_out)))


def drop_interval(goal: Goal, fp32: NDArray[np.float64] | None, rows: NDArray[np.float64], confidence: float, seed: int) -> Drop:
    """The drop of a model with its confidence interval.

    fp32: per-sample rows of the floating-point model for the same samples; None where the baseline was given as a number.
    Then only the model's own samples are drawn anew, and the interval is wider than that of a pair.
    """
    generator = np.random.default_rng(seed)
    better = goal.scorer.higher_is_better
    if fp32 is not None:
        return paired_drop(goal.scorer.value, fp32, rows, higher_is_better=better, confidence=confidence, generator=generator)
    drop, count = goal.drop(goal.scorer.value(rows)), len(rows)
    draws = np.array([goal.drop(goal.scorer.value(rows[generator.integers(0, count, count)])) for _ in range(RESAMPLES)])
    relative = drop / abs(goal.baseline) if goal.baseline else None
    if not np.all(np.isfinite(draws)):
        return Drop(drop, None, None, relative)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Drop(drop, float(low), float(high), relative)


@dataclass(frozen=True)
class BeyondReach:
    """A `Stop`: give up once some metric misses its bar even if the candidate does as well as FP32 on all samples that are left.

    Attributes:
        bars: Metric and the value it must reach (fall to, where lower is better).
        chunk: Samples between two looks.
    """

    bars: tuple[tuple[str, float], ...]
    chunk: int = 16

    def hopeless(self, problem: Problem, rows: Rows, positions: Sequence[int]) -> bool:
        """See `evaluator.Stop`."""
        for metric, bar in self.bars:
            scorer, done = problem.metrics[metric], rows[metric]
            left = problem.fp32[metric][list(positions[len(done) :])]
            value = scorer.value(np.concatenate([done, left]))
            short = bar - value if scorer.higher_is_better else value - bar
            if short > ROUNDING * max(abs(bar), abs(value)):
                return True
        return False
