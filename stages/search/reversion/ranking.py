"""Which reversion block to try first: by its effect on the outputs, then by what its reversion brings on the hardest samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.quantization.effect.blocks import Block
from stages.quantization.effect.measure import FEWEST_SAMPLES as EFFECT_SAMPLES
from stages.quantization.effect.measure import measure, summed
from stages.quantization.effect.switched import Pair
from stages.quantization.noise import aligned_model
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.solve import Solved
from stages.search.candidates import Candidate
from stages.search.evaluator import Outcome, Rows, Task, build_candidate
from stages.search.local_noise import quantizer_noise
from stages.search.problem import Problem
from stages.search.reversion.budget import BeyondReach, Budget, Goal

FEWEST_SAMPLES = 32  # fewer say too little, even where only a handful lost anything
BATCH = 8  # blocks that are scored at once: a fixed number, so that a ranking does not depend on how many workers there are
KEPT_SHARE = 4  # one block in so many gets its score in full; the others only until they cannot be among them any more
FEWEST_KEPT = 4

Evaluate = Callable[[Sequence[Task]], list[Outcome]]


def hardest(budget: Budget, fp32: Rows, rows: Rows) -> NDArray[np.int64]:
    """Indices of samples, those first that lose most by quantization, in whichever metric; of equals the earlier one."""
    return np.argsort(-losses(budget, fp32, rows), kind="stable")


def losses(budget: Budget, fp32: Rows, rows: Rows) -> NDArray[np.float64]:
    """What each sample loses [N]: its score with FP32 minus its score now, as a share of the most that any sample loses."""
    result = np.full(len(next(iter(rows.values()))), -np.inf)
    for goal in budget.goals:
        loss = np.asarray(goal.scorer.score(fp32[goal.metric]) - goal.scorer.score(rows[goal.metric]), np.float64)
        largest = float(np.abs(loss).max())
        result = np.maximum(result, loss / largest if largest else loss)
    return result


def subset_size(budget: Budget, fp32: Rows, rows: Rows, at_most: int) -> int:
    """How many of the hardest samples rank blocks: those that lost anything, at least `FEWEST_SAMPLES`."""
    lost = int(np.count_nonzero(losses(budget, fp32, rows) > 0))
    return min(at_most, max(lost, FEWEST_SAMPLES), len(next(iter(rows.values()))))


def block_noise(problem: Problem, plan: Plan, solved: Solved, blocks: Iterable[Block], positions: Sequence[int]) -> dict[Block, float]:
    """What a block's quantizers add, as noise power over signal power, summed: a proxy for what its reversion brings.

    positions: validation samples on which activations are looked at. One run of the floating-point model serves all blocks.
    """
    return summed(blocks, quantizer_noise(problem, plan, solved, positions))


def by_effect(
    problem: Problem, base: Candidate, blocks: Sequence[Block], positions: Sequence[int], known: Mapping[str, float | None]
) -> list[Block]:
    """Blocks, the most harmful first: by how far the outputs are from FP32's with a block alone quantized.

    Where that cannot be measured, by their noise.

    Args:
        problem: What is searched.
        base: The model with all of them quantized.
        blocks: In the order in which they are computed.
        positions: Validation samples, hardest first.
        known: By layer, effects that `evaluate` has measured of the same blocks of `base`.
    """
    effects = {block: known.get(block.name) for block in blocks}
    if all(effect is not None for effect in effects.values()):
        return sorted(blocks, key=lambda block: -(effects[block] or 0.0))
    quantized, solved = build_candidate(problem, base)
    noise = block_noise(problem, base.plan, solved, blocks, positions)
    floating = problem.model()
    if base.plan.rewrites:
        floating = aligned_model(floating, problem.statistics, base.plan)
    samples = list(problem.chosen(positions[:EFFECT_SAMPLES]))
    pair = Pair(quantized, floating, base.plan)
    found = measure(pair, blocks, noise, None, samples, problem.engine, len(blocks) * len(samples))
    return sorted(blocks, key=lambda block: (-(found.on[block].error if block in found.on else 0.0), -noise[block]))


class Score(NamedTuple):
    """What a block's reversion brings on the hardest samples.

    Attributes:
        value: The metric, the higher the better whatever its direction.
        disagreement: Of all goals, with FP32 (`Budget.disagreement`): of equal values the smaller one counts.
    """

    value: float
    disagreement: float


def score_blocks(
    evaluate: Evaluate,
    problem: Problem,
    budget: Budget,
    goal: Goal,
    positions: Sequence[int],
    blocks: Sequence[Block],
    candidate_of: Callable[[Block], Candidate],
    enough: Callable[[Outcome], bool] = lambda outcome: False,
) -> dict[Block, Score]:
    """What each block's reversion makes of a metric on the hardest samples.

    Candidates are evaluated in the given order. One that can no longer be among the best is given up; its score is
    then the best that it might have reached, which is below theirs.

    Args:
        evaluate: Evaluates tasks, e.g. `Session.evaluate`.
        problem: What is searched.
        budget: What must hold.
        goal: Of the metric.
        positions: The samples, hardest first.
        blocks: What to score, the most harmful first (`by_effect`).
        candidate_of: The model with one more block reverted.
        enough: Whether an outcome promises so much that the blocks behind it need not be scored.
    """
    kept = max(FEWEST_KEPT, ceil(len(blocks) / KEPT_SHARE))
    scores: dict[Block, Score] = {}
    fp32 = {name: rows[list(positions)] for name, rows in problem.fp32.items()}
    for batch in (blocks[first : first + BATCH] for first in range(0, len(blocks), BATCH)):
        best = sorted((score.value for score in scores.values()), reverse=True)
        stop = BeyondReach(((goal.metric, goal.sign * best[kept - 1]),)) if len(best) >= kept else None
        outcomes = evaluate([Task(candidate_of(block), tuple(positions), stop) for block in batch])
        for block, outcome in zip(batch, outcomes, strict=True):
            done = len(outcome.rows[goal.metric])
            rows = {name: np.concatenate([own, fp32[name][done:]]) for name, own in outcome.rows.items()}
            scores[block] = Score(goal.sign * goal.scorer.value(rows[goal.metric]), budget.disagreement(fp32, rows))
        if any(outcome.complete and enough(outcome) for outcome in outcomes):
            break
    return scores


def ranked(scores: Mapping[Block, Score], order: Sequence[Block]) -> list[Block]:
    """The blocks, the most worthwhile first: of equal values the one that agrees better with FP32, then the more harmful one."""
    places = {block: place for place, block in enumerate(order)}
    return sorted(scores, key=lambda block: (-scores[block].value, scores[block].disagreement, places[block]))
