"""Accuracy-aware quantization: give back as few layers as keep the accuracy budget.

Greedy, as POT 2023.3, with what that lacks: the best model so far is kept, a step that makes it worse is
undone and not tried again from where it failed, and layers that turn out not to be needed are quantized again. Steps grow
while they succeed, so that a model that needs many layers back does not pay an evaluation for each of them; the way back finds
those that a large step reverted for nothing.

Every decision follows from outcomes alone: the same outcomes lead to the same model, wherever and however often they were found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from stages.configuration import schema
from stages.quantization.effect.blocks import ACTIVATIONS_ONLY, Block, blocks_of
from stages.quantization.model.graph import read_graph
from stages.quantization.refinement.accurate_bias import reason_against
from stages.search.acceptance import CONFIDENT, Family, replaced_rows
from stages.search.candidates import Candidate, candidate_key
from stages.search.evaluator import Outcome, Rows, Task, all_positions, build_candidate
from stages.search.reversion import trace
from stages.search.reversion.budget import BeyondReach, Budget
from stages.search.reversion.estimator_variants import estimator_variants, other_bias_correction
from stages.search.reversion.ranking import by_effect, hardest, ranked, score_blocks, subset_size
from stages.search.reversion.reverting import reverted
from stages.search.reversion.trace import State, Step, layers_of
from stages.search.session import Session

RANKING_SUBSET = 300  # POT's default
MOST_BACK = 0.5  # share of the multiplications that may return to floating point to be sure of the budget


class _OutOfTime(Exception):  # noqa: N818  # no error: the end of a search
    """The time that the configuration allows is used up."""


@dataclass
class Reversion:
    """A search for the model that keeps the budget and reverts the least.

    Attributes:
        session: Answers with outcomes.
        budget: What must hold.
        settings: The section `accuracy_aware`.
        positions: The search samples, in ascending order.
        notice: Is told each step.
        advance: Is called with the number of evaluations that are done.
        confidence: Of the intervals that end a ranking early, and with which a model is accepted.
        seed: Of their draws.
        effects: What `evaluate` has measured of the blocks of the model that the search starts from: by layer the error of the outputs.
        family: All models that were looked at, where the budget must hold beyond the search samples (accuracy_aware.acceptance).
        sure: Whether it does; None: nobody asked.
        best: The best model so far on the search samples.
        trace: All steps.
        stopped: Why the search ended before it was done; empty where it was.
    """

    session: Session
    budget: Budget
    settings: schema.AccuracyAware
    positions: tuple[int, ...]
    notice: Callable[[Step], None] = lambda step: None
    advance: Callable[[int], None] = lambda count: None
    confidence: float = 0.95
    seed: int = 0
    effects: Mapping[str, float | None] = field(default_factory=dict)
    family: Family | None = None
    sure: bool | None = None
    best: State | None = None
    trace: list[Step] = field(default_factory=list)
    stopped: str = ""
    _began: Candidate | None = None
    _known: dict[str, State | None] = field(default_factory=dict)  # by candidate; None: given up early
    _states: list[State] = field(default_factory=list)
    _whole: float = math.inf  # multiplications of all blocks
    _gains: dict[Block, float] = field(default_factory=dict)  # what a reversion brought on the hardest samples, in units of its metric

    def __post_init__(self) -> None:
        if self.settings.acceptance == CONFIDENT:
            self.family, self.sure = Family(self.budget.criteria(self._fp32()), self.confidence, self.seed), True

    def run(self, base: Candidate, rows: Rows | None, mixed: Candidate | None = None) -> State:
        """The best model that was found.

        Args:
            base: Where to start.
            rows: Per-sample rows of `base` on all validation samples where they are known.
            mixed: What convert_to_mixed_preset tries; None: nothing.
        """
        base = self._began = self._frozen(base)
        if rows is not None:
            own = {name: values[list(self.positions)] for name, values in rows.items()}
            self._known[candidate_key(base)] = State(base, own, self.budget.excess(own))
            if self.family is not None:
                self.family.add(candidate_key(base), own)
        state = self._evaluated(base)
        assert state is not None  # nothing gave it up
        self._record_step(trace.BASE, (), state, state, self._kept(state) or trace.EXCEEDS)
        try:
            if not self._holds(state) and mixed is not None:
                state = self._replaced(trace.MIXED, state, self._frozen(mixed))
            if not self._holds(state) and self.settings.tune_hyperparams:
                state = self._tuned(state)
            if not self._holds(state):
                self._revert(state)
        except _OutOfTime:
            self.stopped = f"accuracy_aware.max_minutes, which is {self.settings.max_minutes:g}, is used up"
        return self._chosen()

    def _chosen(self) -> State:
        """The model that gives least back of those that surely keep the budget; where none does, the best one on these samples."""
        assert self.best is not None
        if self.family is not None:
            certain = [state for state in self._states if self._is_worth_it(state) and self._sure_excess(state) <= 0]
            self.sure = bool(certain)
            if certain:
                return min(certain, key=lambda state: state.cost)
        return self.best

    def _excess(self, state: State) -> float:
        """How far a model is beyond the budget: for sure as long as that is looked for, else on the search samples."""
        return self._sure_excess(state) if self.sure else state.excess

    def _sure_excess(self, state: State) -> float:
        """How far beyond the budget it may be on samples that nobody has seen."""
        assert self.family is not None
        return self.family.excess(candidate_key(state.candidate))

    def _is_worth_it(self, state: State) -> bool:
        """Whether enough is quantized to prefer a sure model to one that keeps the budget on the search samples, where there is one."""
        return self.best is None or not self.best.holds or state.cost <= max(MOST_BACK * self._whole, self.best.cost)

    def _holds(self, state: State) -> bool:
        return self._excess(state) <= 0

    def _why_accepted(self, new: State, state: State) -> str:
        if kept := self._kept(new):
            return kept
        if (here := self._excess(new)) < (before := self._excess(state)):
            return trace.BETTER
        return trace.NO_WORSE if here == before else trace.WORSE_KEPT

    def _kept(self, state: State) -> str:
        """In which sense a model keeps the budget; empty where it does not."""
        return trace.KEEPS if self._holds(state) else trace.UNSURE if state.holds else ""

    # ------------------------------------------------------------------------------------------- before any reversion

    def _replaced(self, phase: str, state: State, candidate: Candidate) -> State:
        """The model of `candidate` if it is better than `state`, else that."""
        new = self._evaluated(candidate)
        assert new is not None  # nothing gave it up
        chosen = new if self._excess(new) < self._excess(state) else state
        self._record_step(phase, (), new, chosen, (self._kept(new) or trace.BETTER) if chosen is new else trace.USELESS)
        return chosen

    def _tuned(self, state: State) -> State:
        """The model with the estimators, and then with the bias correction, that lose least on the hardest samples."""
        positions = self._hardest(state)[: self._most_ranked()]

        def lost(rows: Rows) -> tuple[float, float]:
            """How far the metric that is worst off falls behind FP32 on these samples; of equals, how far they disagree with FP32."""
            fp32 = {name: values[list(positions)] for name, values in self.session.problem.fp32.items()}
            worst = max(
                goal.sign * (goal.scorer.value(fp32[goal.metric]) - goal.scorer.value(rows[goal.metric])) / goal.unit
                for goal in self.budget.goals
            )
            return worst, self.budget.disagreement(fp32, rows)

        best, least = state.candidate, lost(self._own(state, positions))
        for variants in (estimator_variants, lambda found: [self._other_bias_correction(found)]):
            tried = [variant for variant in variants(best) if variant is not None]
            for variant, outcome in zip(tried, self._outcomes([Task(variant, positions) for variant in tried], state), strict=True):
                if lost(outcome.rows) < least:
                    best, least = variant, lost(outcome.rows)
        return state if best is state.candidate else self._replaced(trace.HYPERPARAMETERS, state, self._frozen(best))

    def _other_bias_correction(self, found: Candidate) -> Candidate | None:
        other, problem = other_bias_correction(found), self.session.problem
        if other is None or other.bias_correction.use_fast_bias or problem.calibration is None:
            return other
        if reason := reason_against(problem.model(), problem.calibration):
            step = Step(len(self.trace), trace.HYPERPARAMETERS, (), 0, None, False, f"no {other.label}: {reason}")
            self.trace.append(step)
            self.notice(step)
            return None
        return other

    # ---------------------------------------------------------------------------------------------------- reversion

    def _revert(self, state: State) -> None:
        problem, base = self.session.problem, state.candidate
        blocks = blocks_of(read_graph(problem.model()), base.plan, self.settings.restore)
        self._whole = sum(block.cost for block in blocks)
        measured = self.effects if self._began is base and self.settings.restore != ACTIVATIONS_ONLY else {}
        ordered = by_effect(problem, base, blocks, self._hardest(state), measured)
        if self.sure:
            # One evaluation says whether looking for a sure model is worth many.
            half = self._most_harmful(ordered)
            ceiling = self._evaluated(reverted(base, half), half)
            assert ceiling is not None  # nothing gave it up
            self.sure = self._holds(ceiling)
            self._record_step(trace.CEILING, layers_of(half), ceiling, state, trace.KEEPS if self.sure else trace.TOO_FEW)
        sure_before = self.sure
        state = self._forth(state, ordered)
        if sure_before and not self._holds(state):
            state = self._chosen()  # on the way there may have been one
        if self._holds(state):
            self._back(state, base)

    def _most_harmful(self, ordered: Sequence[Block]) -> tuple[Block, ...]:
        """The most harmful blocks, as many as may be given back to be sure of the budget."""
        chosen, left = list[Block](), MOST_BACK * self._whole
        for block in ordered:
            if block.cost <= left:
                chosen.append(block)
                left -= block.cost
        return tuple(chosen)

    def _forth(self, state: State, blocks: Sequence[Block]) -> State:
        """Revert blocks, the most worthwhile first, until the budget holds or nothing is left to try."""
        base, queue, size = state.candidate, list[Block](), 1
        ranked_at: frozenset[Block] | None = None
        all_ranked = True  # or only until one promised to be enough
        everything = False  # whether what is left was tried as a whole
        iterations = 0
        while not self._holds(state):
            if self.sure and not self._is_worth_it(state):
                break
            left = [block for block in blocks if block not in state.blocks]
            if not left or (everything and not queue):
                self.stopped = "there is nothing left to revert" if not left else "no further reversion helps"
                break
            if iterations == self.settings.max_iter_num:
                self.stopped = f"accuracy_aware.max_iter_num, which is {iterations}, is reached"
                break
            if not queue:
                again = ranked_at == frozenset(state.blocks)  # what was ranked failed from here
                everything = again and all_ranked
                queue, size = (left, len(left)) if everything else (self._ranked(base, state, left, thorough=again), 1)
                ranked_at, all_ranked = frozenset(state.blocks), len(queue) == len(left)
            # Where the best of a part brings less than it promised, others are ranked anew: from where it led, or all of them.
            step, queue = queue[:size], queue[size:] if all_ranked else []
            iterations += 1
            tried = (*state.blocks, *step)
            careful = self.settings.use_prev_if_drop_increase
            new = self._evaluated(reverted(base, tried), tried, self._stop(state, self._excess(state)) if careful else None, state)
            if new is not None and (not careful or self._no_worse(new, state)):
                self._record_step(trace.REVERT, layers_of(step), new, new, self._why_accepted(new, state))
                state, size = new, 2 * size
                continue
            self._record_step(trace.REVERT, layers_of(step), new, state, trace.WORSE, reverted_layers=len(layers_of(tried)))
            if len(step) > 1 and not everything:
                queue, size = [*step, *queue], 1  # each by itself
        return state

    def _no_worse(self, new: State, state: State) -> bool:
        """Of equal excesses the one further from FP32 is worse."""
        here, before = self._excess(new), self._excess(state)
        return here < before or (here == before and self._disagreement(new) <= self._disagreement(state))

    def _ranked(self, base: Candidate, state: State, blocks: Sequence[Block], *, thorough: bool) -> list[Block]:
        """Blocks by what their reversion from `state` brings on the samples that it loses most on.

        thorough: all blocks, as the best of a part has failed. Otherwise none beyond those among which one would be enough if it
        changed nothing on other samples.
        Enough at the upper end of the drop's confidence interval: a block that just keeps the budget on these samples is likely
        to miss it on others, and a better one, often cheaper, may be among the rest.
        """
        problem, goal = self.session.problem, self.budget.worst(state.rows)
        own_fp32 = self._fp32()
        positions = self._hardest(state)[: subset_size(self.budget, own_fp32, state.rows, self._most_ranked())]

        def with_block(block: Block) -> Candidate:
            return reverted(base, (*state.blocks, block))

        def enough(outcome: Outcome) -> bool:
            expected = replaced_rows(state.rows, np.searchsorted(self.positions, positions), outcome.rows)
            return not thorough and self.budget.excess(expected) <= 0 and self.budget.sure(own_fp32, expected, self.confidence, self.seed)

        scores = score_blocks(partial(self._outcomes, state=state), problem, self.budget, goal, positions, blocks, with_block, enough)
        before = goal.sign * goal.scorer.value(self._own(state, positions)[goal.metric])
        self._gains |= {block: (score.value - before) / goal.unit for block, score in scores.items()}
        return ranked(scores, blocks)

    def _back(self, state: State, base: Candidate) -> None:
        """Quantize reverted blocks again as long as the budget holds: what brought least first, of equals what costs most."""
        queue, size = sorted(state.blocks, key=lambda block: (self._gains.get(block, 0.0), -block.cost)), 1
        while queue:
            step, queue = queue[:size], queue[size:]
            kept = tuple(block for block in state.blocks if block not in step)
            if self._failed(reverted(base, kept)):  # where the last reversion started from
                queue, size = [*(step if len(step) > 1 else ()), *queue], 1
                continue
            new = self._evaluated(reverted(base, kept), kept, self._stop(state, 0.0), state)
            if new is not None and self._holds(new):
                self._record_step(trace.REQUANTIZE, layers_of(step), new, new, trace.KEEPS)
                state, size = new, 2 * size
                continue
            self._record_step(trace.REQUANTIZE, layers_of(step), new, state, trace.NEEDED, reverted_layers=len(layers_of(kept)))
            if len(step) > 1:
                queue = [*step, *queue]
            size = 1

    # --------------------------------------------------------------------------------------------------- evaluation

    def _evaluated(
        self, candidate: Candidate, blocks: Iterable[Block] = (), stop: BeyondReach | None = None, state: State | None = None
    ) -> State | None:
        """The candidate on the search samples, those first that `state` loses most on; None where `stop` gave it up."""
        key = candidate_key(candidate)
        if key not in self._known:
            order = self.positions if state is None else self._hardest(state)
            outcome = self._outcomes([Task(candidate, order, stop)], state)[0]
            self._known[key] = None
            if outcome.complete:
                places = np.argsort(order)
                rows = {name: values[places] for name, values in outcome.rows.items()}
                self._known[key] = State(candidate, rows, self.budget.excess(rows))
        known = self._known[key]
        return known if known is None else replace(known, blocks=tuple(blocks))

    def _order(self, state: State) -> tuple[float, float, float]:
        """Less is better: of models that keep the budget the one that gives least back, of others the one closest to it.

        Of equals the one that agrees better with FP32.
        """
        if state.holds:
            return 0.0, state.cost, self._disagreement(state)
        return state.excess, self._disagreement(state), state.cost

    def _disagreement(self, state: State) -> float:
        return self.budget.disagreement(self._fp32(), state.rows)

    def _failed(self, candidate: Candidate) -> bool:
        """Whether the candidate is known not to keep the budget."""
        known = self._known.get(key := candidate_key(candidate))
        return key in self._known and (known is None or not self._holds(known))

    def _outcomes(self, tasks: Sequence[Task], state: State | None) -> list[Outcome]:
        """Evaluate models that were made from `state`; None: from floating point."""
        limit = self.settings.max_minutes
        if limit is not None and self.session.spent_seconds >= 60 * limit:
            raise _OutOfTime
        outcomes = self.session.evaluate(tasks, lambda outcome: self.advance(1))
        if self.family is not None:
            before = self._fp32() if state is None else state.rows
            for task, outcome in zip(tasks, outcomes, strict=True):
                done = len(next(iter(outcome.rows.values())))
                if done == len(self.positions) or outcome.candidate not in self.family:
                    places = np.searchsorted(self.positions, all_positions(self.session.problem, task)[:done])
                    self.family.add(outcome.candidate, replaced_rows(before, places, outcome.rows))
        return outcomes

    def _stop(self, state: State, excess: float) -> BeyondReach:
        """Gives up models whose excess will be more than this.

        A model may do better than FP32 on some samples: as much as `state` does so is granted to it, too.
        """
        bars = []
        for goal, (metric, bar) in zip(self.budget.goals, self.budget.bars(excess), strict=True):
            fp32, own = self.session.problem.fp32[metric][list(self.positions)], state.rows[metric]
            gained = (goal.scorer.score(own) > goal.scorer.score(fp32)).reshape(-1, *[1] * (own.ndim - 1))
            slack = goal.scorer.value(np.where(gained, own, fp32)) - goal.scorer.value(fp32)
            bars.append((metric, bar - goal.sign * max(0.0, goal.sign * slack)))
        return BeyondReach(tuple(bars))

    def _hardest(self, state: State) -> tuple[int, ...]:
        """The search samples, those first that `state` loses most on."""
        return tuple(self.positions[index] for index in hardest(self.budget, self._fp32(), state.rows))

    def _fp32(self) -> Rows:
        """The floating-point model's rows of the search samples."""
        return {name: rows[list(self.positions)] for name, rows in self.session.problem.fp32.items()}

    def _own(self, state: State, positions: Sequence[int]) -> Rows:
        """The rows of some of the search samples."""
        places = np.searchsorted(self.positions, positions)
        return {name: rows[places] for name, rows in state.rows.items()}

    def _most_ranked(self) -> int:
        return self.settings.ranking_subset_size or RANKING_SUBSET

    def _frozen(self, candidate: Candidate) -> Candidate:
        """The candidate with the biases that inference finds for it, so that they are found once and not for every reversion."""
        correction = candidate.bias_correction
        if not correction.enabled or correction.use_fast_bias or candidate.corrections is not None:
            return candidate
        return replace(candidate, corrections=tuple(build_candidate(self.session.problem, candidate)[1].corrections))

    def _record_step(
        self, phase: str, layers: Sequence[str], new: State | None, chosen: State, why: str, reverted_layers: int | None = None
    ) -> None:
        """Remember the best model and write the trace. new: what was tried, None: given up early; chosen: where it goes on."""
        if new is not None:
            self._states.append(new)
            if self.best is None or self._order(new) < self._order(self.best):
                self.best = new
        count = reverted_layers if reverted_layers is not None else len(new.layers) if new else 0
        drops = None if new is None else self.budget.drops(new.rows)
        if new is None:
            why = f"{why}, given up early"
        step = Step(len(self.trace), phase, tuple(layers), count, drops, chosen is new, why)
        self.trace.append(step)
        self.notice(step)
