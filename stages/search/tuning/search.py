"""The search for the fastest configuration within an accuracy budget: trials, their scores, and the best of them.

A trial is evaluated until its loss is clearly beyond the budget (`early`), and timed against the FP32 model in the same
moments. What was evaluated before, by this search or by another one, is remembered by the session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from stages.configuration.schema import BiasCorrection
from stages.measurement.latency import Spread
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.biases import Correction
from stages.search.acceptance import CONFIDENT, POINT, Family
from stages.search.candidates import Candidate, candidate_key, corrections_of_quantized
from stages.search.evaluator import Outcome, Rows, Task, Timing, build_candidate, time_models
from stages.search.problem import Problem
from stages.search.session import Session
from stages.search.tuning import tpe
from stages.search.tuning.early import BeyondBudget
from stages.search.tuning.objective import Budget, Score, Target, make_budget, pot_loss
from stages.search.tuning.space import Proposal, Space

POT_LOSS, CONSTRAINED = "pot_loss", "constrained"
PLAN = "plan"
LOOKS = 20  # at least, on the way through the samples
LARGEST_CHUNK = 50
FULL, ACCURACY_AWARE = "fully quantized", "accuracy_aware"
PRESETS = {preset: f"preset {preset}" for preset in ("performance", "mixed", "accuracy", "auto")}  # labels
COMPARED = (FULL, ACCURACY_AWARE, *PRESETS.values())  # labels of trials that the result is compared with
FINALISTS = 5

Rounds = dict[str, list[float]]


class Planner(Protocol):
    """Says which planned trials to try next, from what became of the ones before."""

    def next(self, trials: Sequence[Trial], within: Callable[[Trial], bool], count: int) -> list[Start]:
        """At most `count` trials; `within` says which of the trials keep the budget."""


class Start(NamedTuple):
    """A trial that is given instead of proposed."""

    label: str
    candidate: Candidate
    proposal: Proposal  # what comes nearest to it in the space


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        label: Where it comes from, e.g. `preset mixed` or `TPE`.
        candidate: The configuration.
        proposal: Its choices in the space.
        score: Loss, speed-up and quantized share; an estimate of the loss where the evaluation was given up.
        loss: The objective's value.
        complete: Whether all samples were evaluated.
        losses: Relative loss of each metric of the budget.
        values: Value of each metric over the samples that were evaluated.
        samples: How many that were.
        speed_up: Against FP32 in the default precision, where it was measured.
        latency_ms: Where it was measured.
        seconds: What the evaluation took when it was done.
    """

    label: str
    candidate: Candidate
    proposal: Proposal
    score: Score
    loss: float
    complete: bool
    losses: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    speed_up: Spread | None = None
    latency_ms: Spread | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Goal:
    """What the search is for, and when it ends.

    Attributes:
        objective: `pot_loss` or `constrained`.
        target: Budget, speed and weights.
        baselines: The metrics of the budget with their baseline values (None: FP32's own).
        positions: Validation samples, in the order in which they are evaluated.
        stop_error: Probability of giving up wrongly on a candidate within the budget; 0: never give up.
        timing: How latency is measured; None: not at all, and the quantized share stands for speed.
        time_here: Measure on this machine, alone, whatever the cluster.
        max_trials: In total.
        max_seconds: That all trials may take together; infinite: no limit.
        stop_on_target: End with the first trial that meets the target.
        batch_size: Trials that are proposed and run together.
        acceptance: `point`, or `confident`: the budget is to hold on samples that nobody has seen, too.
        confidence: With which it is.
        strategy: `tpe`, or `plan`: nothing but what is given and planned.
    """

    objective: str
    target: Target
    baselines: tuple[tuple[str, float | None], ...]
    positions: tuple[int, ...]
    stop_error: float = 0.0
    timing: Timing | None = None
    time_here: bool = True
    max_trials: int = 60
    max_seconds: float = math.inf
    stop_on_target: bool = False
    batch_size: int = 1
    acceptance: str = POINT
    confidence: float = 0.95
    strategy: str = tpe.TPE

    def budget(self, problem: Problem) -> Budget:
        """The metrics that must keep the budget."""
        rows = {name: problem.fp32[name][list(self.positions)] for name, _ in self.baselines}
        return make_budget(problem.metrics, rows, dict(self.baselines))


@dataclass
class Search:
    """A search under way: its trials, in order.

    Attributes:
        session: Evaluates and remembers.
        space: What may be chosen.
        goal: What is asked for.
        settings: Of the sampler.
        bias_correction: For all candidates.
        corrections: Found with inference for the base; they hold for layers that stay quantized.
        trials: What is known.
        ended: Why the search ended.
        family: All trials that were evaluated in full, where the budget is to hold on samples that nobody has seen.
        sure: Indices of the trials of which that is sure.
        final_rounds: What `finals` found.
        confirmed: Index of the trial that `confirm` chose.
    """

    session: Session
    space: Space
    goal: Goal
    settings: tpe.Settings
    bias_correction: BiasCorrection
    corrections: tuple[Correction, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    ended: str = ""
    family: Family | None = None
    sure: frozenset[int] = frozenset()
    final_rounds: Rounds = field(default_factory=dict)
    confirmed: int | None = None
    _rows: dict[str, Rows] = field(default_factory=dict)  # by candidate, of the trials of this run

    def resume_from(self, trials: Sequence[Trial]) -> None:
        """Take over the trials of an earlier search; their losses are those of this one's goal."""
        for trial in trials:
            self.trials.append(self.judged(trial))

    def run(
        self, starts: Sequence[Start], done: Callable[[], None] = lambda: None, plans: Planner | None = None, more: Sequence[Start] = ()
    ) -> None:
        """Carry the search on to its end.

        Args:
            starts: Tried first, as far as they are no duplicates; the fully quantized model is the first of them.
            done: Called after every batch.
            plans: Says what to try next of what was planned.
            more: Tried after the plans.
        """
        known = {candidate_key(trial.candidate) for trial in self.trials}
        given, later = ([start for start in some if candidate_key(start.candidate) not in known] for some in (starts, more))
        while not self._is_over():
            count = min(self.goal.batch_size, self.goal.max_trials - len(self.trials))
            if not self.trials:
                count = 1  # makes the scales of all others
            batch = _unknown(given, count, known)
            if not batch and plans is not None:
                batch = _unknown(plans.next(self.trials, self._inside, count), count, known)
            if not batch:
                batch = _unknown(later, count, known)
            if not batch and self.goal.strategy == PLAN:
                self.ended = "what was planned is evaluated"
                return
            if not batch:
                batch = self._proposed(count, known)
                known |= {candidate_key(start.candidate) for start in batch}
            if not batch:
                self.ended = "there is nothing else to try in the space"
                return
            for trial in self._evaluated(batch):
                self.trials.append(self.judged(trial))
            done()

    @property
    def best(self) -> Trial:
        """The fastest trial within the budget, or the one with the lowest loss; by the finals and by `confirm`, where there were any."""
        if self.confirmed is not None:
            return self.trials[self.confirmed]
        if ranked := self._fastest_inside():
            return self.trials[ranked[0]]
        # What was given up is beyond the budget; that it is within a larger one of now is not known.
        return min([trial for trial in self.trials if trial.complete] or self.trials, key=lambda trial: trial.loss)

    def confirm(self) -> tuple[Rows, float]:
        """Make sure that the best trial keeps the budget on all samples, where trials saw only a part; else the next fastest is the best.

        Returns:
            The best model's rows on all samples in their order, by metric, and its relative loss on them.
        """
        problem = self.session.problem
        everywhere = make_budget(problem.metrics, problem.fp32, dict(self.goal.baselines))
        found: list[tuple[Rows, float]] = []
        for index in self._fastest_inside()[:FINALISTS] or [self.trials.index(self.best)]:
            rows = self.session.evaluate([Task(self.trials[index].candidate)])[0].rows
            found.append((rows, max(everywhere.losses(rows).values())))
            if found[-1][1] <= self.goal.target.accuracy_loss:
                self.confirmed = index
                return found[-1]
        self.confirmed = self.trials.index(self.best)
        return found[0]

    def assure(self) -> None:
        """Find out which trials keep the budget for sure, where the goal asks for that; those are preferred from then on."""
        if self.goal.acceptance != CONFIDENT:
            return
        complete = [index for index, trial in enumerate(self.trials) if trial.complete]
        keys = {index: candidate_key(self.trials[index].candidate) for index in complete}
        earlier = [index for index in complete if keys[index] not in self._rows]  # of another run; remembered
        for outcome in self.session.evaluate([self._task(self.trials[index].candidate, first=not index) for index in earlier]):
            self._rows[outcome.candidate] = outcome.rows
        self.family = Family(self._budget.criteria(self.goal.target.accuracy_loss), self.goal.confidence, self.settings.seed)
        for key in keys.values():
            if len(next(iter(self._rows[key].values()))) == len(self.goal.positions):
                self.family.add(key, self._rows[key])
        kept = {key for key in self.family if self.family.excess(key) <= 0}
        self.sure = frozenset(index for index, key in keys.items() if key in kept)

    def _fastest_inside(self) -> list[int]:
        """Indices of the trials within the budget, the fastest first, of equally fast ones the more accurate; by the finals, if any."""
        inside = [index for index, trial in enumerate(self.trials) if self._inside(trial)]
        inside = [index for index in inside if index in self.sure] or inside
        if self.final_rounds:
            timed = [index for index in inside if str(index) in self.final_rounds]
            return sorted(timed, key=lambda index: float(np.median(self.final_rounds[str(index)])))
        scores = [trial.score for trial in self.trials]
        return sorted(inside, key=lambda index: (-scores[index].speed_up, scores[index].accuracy_loss))

    def _inside(self, trial: Trial) -> bool:
        return trial.complete and self.goal.target.within_budget(trial.score)

    def finalists(self) -> list[int]:
        """Indices of the fastest trials within the budget (the best where none is), of the presets and the accuracy-aware model."""
        fastest = self._fastest_inside()[:FINALISTS] or [self.trials.index(self.best)]
        compared = [index for index, trial in enumerate(self.trials) if trial.label in COMPARED and trial.complete]
        return list(dict.fromkeys([*fastest, *compared]))

    def finals(self) -> Rounds:
        """Time the finalists again, all in the same rounds: among many trials the fastest is the luckiest, too.

        Returns:
            Seconds of one inference per round, by index of the trial; `default` for FP32 in the default precision.
        """
        timing, problem = self.goal.timing, self.session.problem
        assert timing is not None
        models = {str(index): build_candidate(problem, self.trials[index].candidate)[0] for index in self.finalists()}
        rounds = time_models(problem, models, replace(timing, seconds=timing.seconds * (1 + len(models))))
        return {name: times.tolist() for name, times in rounds.items()}

    def candidate(self, plan: Plan, label: str) -> Candidate:
        """A candidate of a plan, with the bias correction that all candidates have."""
        corrections = corrections_of_quantized(self.corrections, plan, self.bias_correction.apply_for_all_nodes)
        return Candidate(plan, self.bias_correction, corrections, label)

    def start(self, label: str, proposal: Proposal) -> Start:
        """A trial to be given."""
        return Start(label, self.candidate(self.space.plan(proposal), label), proposal)

    def _is_over(self) -> bool:
        if len(self.trials) >= self.goal.max_trials:
            self.ended = f"{len(self.trials)} trials"
        elif sum(trial.seconds for trial in self.trials) >= self.goal.max_seconds:
            self.ended = f"{self.goal.max_seconds / 60:g} minutes of trials"
        elif self.goal.stop_on_target and any(trial.complete and self.goal.target.met(trial.score) for trial in self.trials):
            self.ended = "the target is met"
        return bool(self.ended)

    def _proposed(self, count: int, known: set[str]) -> list[Start]:
        constrained = self.goal.objective == CONSTRAINED
        told = [
            tpe.TrialOutcome(
                trial.proposal, trial.loss, trial.score.accuracy_loss - self.goal.target.accuracy_loss if constrained else None
            )
            for trial in self.trials
        ]
        proposals = self._proposer.propose(told, count, known)
        label = "TPE" if len(self.trials) >= self.settings.n_initial_point and self.settings.sampler == tpe.TPE else "random"
        return [self.start(label, proposal) for proposal in proposals]

    # ------------------------------------------------------------------------------------------------ evaluation

    def _evaluated(self, batch: Sequence[Start]) -> list[Trial]:
        goal, first = self.goal, not self.trials
        judged = self.session.evaluate([self._task(start.candidate, first=first) for start in batch])
        self._rows |= {outcome.candidate: outcome.rows for outcome in judged}
        timed: list[Outcome | None] = [None] * len(batch)
        if goal.timing is not None:
            # What was given up is not timed: it cannot be the result.
            tasks = {index: Task(start.candidate, (), timing=goal.timing) for index, start in enumerate(batch) if judged[index].complete}
            for index, outcome in zip(tasks, self._timed(list(tasks.values())), strict=True):
                timed[index] = outcome
        return [self._trial(*entry) for entry in zip(batch, judged, timed, strict=True)]

    def _task(self, candidate: Candidate, *, first: bool) -> Task:
        """The evaluation of a trial; the first one, which makes the scales, is never given up."""
        goal, stop = self.goal, None
        if goal.stop_error and not first:
            chunk = max(1, min(LARGEST_CHUNK, math.ceil(len(goal.positions) / LOOKS)))
            stop = BeyondBudget(goal.baselines, goal.target.accuracy_loss, goal.stop_error, chunk)
        return Task(candidate, goal.positions, stop)

    def _timed(self, tasks: Sequence[Task]) -> list[Outcome]:
        if self.goal.time_here:
            return [outcome for task in tasks for outcome in self.session.evaluate([task], here=True)]
        return self.session.evaluate(tasks)

    def _trial(self, start: Start, judged: Outcome, timed: Outcome | None) -> Trial:
        score, losses = self._score(start.candidate.plan, judged.rows, timed)
        values = {name: metric.value(judged.rows[name]) for name, metric in self.session.problem.metrics.items()}
        return Trial(
            label=start.label,
            candidate=start.candidate,
            proposal=start.proposal,
            score=score,
            loss=math.nan,
            complete=judged.complete,
            losses=losses,
            values=values,
            samples=len(next(iter(judged.rows.values()))),
            speed_up=None if timed is None else timed.speed_up,
            latency_ms=None if timed is None else timed.latency_ms,
            seconds=judged.seconds + (0.0 if timed is None else timed.seconds),
        )

    def judged(self, trial: Trial) -> Trial:
        """The trial with the loss that the goal of this search gives it; the first trial makes the scales."""
        if self.goal.objective == CONSTRAINED:
            return replace(trial, loss=-math.log(trial.score.speed_up))
        full = self.trials[0].score if self.trials else trial.score
        return replace(trial, loss=pot_loss(trial.score, full, self.goal.target))

    def _score(self, plan: Plan, rows: Rows, timed: Outcome | None) -> tuple[Score, dict[str, float]]:
        quantized = self.space.share_quantized(plan)
        if self.goal.timing is None:
            speed_up = 1.0 + quantized
        else:
            speed_up = timed.speed_up.median if timed is not None and timed.speed_up is not None else 1.0
        losses = self._budget.losses(rows)
        return Score(max(losses.values()), speed_up, quantized), losses

    def __post_init__(self) -> None:
        self._budget = self.goal.budget(self.session.problem)
        self._proposer = tpe.Proposer(self.space, self.settings, lambda proposal: candidate_key(self.start("", proposal).candidate))


# ---------------------------------------------------------------------------------------------------------------- starts


def _unknown(waiting: list[Start], count: int, known: set[str]) -> list[Start]:
    """Take up to `count` trials that are not known yet from the front of those that wait, and make them known."""
    batch: list[Start] = []
    while waiting and len(batch) < count:
        start = waiting.pop(0)
        if (key := candidate_key(start.candidate)) not in known:
            batch.append(start)
            known.add(key)
    return batch


def exclusions(search: Search, noise: Mapping[str, float], count: int) -> list[Start]:
    """Trials without the units that hurt most: first one at a time, then 2, 4, 8, ... together.

    Args:
        search: For the space and the bias correction.
        noise: By quantizer name, where it is known, a ratio of signal to error in dB.
        count: How many.
    """

    def worst(names: Sequence[str]) -> float:
        return min((noise[name] for name in names if name in noise), default=math.inf)

    ranked = sorted(search.space.units, key=lambda unit: worst(unit.activations + unit.weights))
    alone = [(unit.name,) for unit in ranked[: (count + 1) // 2]]
    together = [tuple(unit.name for unit in ranked[: 2**power]) for power in range(1, 16) if 2**power < len(ranked)]
    chosen = [*alone, *together[: count - len(alone)]]
    proposals = [
        (f"without {names[0]}" if len(names) == 1 else f"without the {len(names)} worst", search.space.without(names)) for names in chosen
    ]
    base = search.space.base_proposal()
    return [search.start(label, proposal) for label, proposal in proposals if proposal != base]


def shuffled(count: int, seed: int) -> tuple[int, ...]:
    """The positions 0 to count - 1 in an order that is drawn at random."""
    return tuple(int(position) for position in np.random.default_rng([seed, count]).permutation(count))
