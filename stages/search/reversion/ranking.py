"""Which reversion block to try first: a proxy from the noise of its quantizers, then its effect on the hardest samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from stages.quantization.effect.blocks import Block
from stages.quantization.noise import ActivationNoise, aligned_model, weight_noise
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.solve import Solved
from stages.runtime import engine
from stages.search.candidates import Candidate
from stages.search.evaluator import Outcome, Rows, Task
from stages.search.problem import Problem
from stages.search.reversion.budget import BeyondReach, Budget, Goal

NOISE_SAMPLES = 16
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

    Of activations all channels count alike (`ActivationNoise.shares`): where few of them are so large that the others drown, the
    tensor's power says nothing of it.

    positions: validation samples on which activations are looked at. One run of the floating-point model serves all blocks.
    """
    model = problem.model()
    if plan.rewrites:
        model = aligned_model(model, problem.statistics, plan)
    ratios = weight_noise(model, plan, solved.ranges, solved.own_weights)
    shares = {name: 0.0 if decibels is None else 10.0 ** (-decibels / 10.0) for name, decibels in ratios.items()}
    activations = ActivationNoise(model, plan, solved.ranges)
    if activations.names:
        compiled = engine.compile(activations.model, problem.engine, "f32")
        shares |= activations.shares(engine.infer(compiled, problem.chosen(positions[:NOISE_SAMPLES])))
    return {block: sum(shares.get(name, 0.0) for name in block.quantizers) for block in blocks}


def score_blocks(
    evaluate: Evaluate,
    problem: Problem,
    goal: Goal,
    positions: Sequence[int],
    blocks: Sequence[Block],
    noise: Mapping[Block, float],
    candidate_of: Callable[[Block], Candidate],
    enough: Callable[[Outcome], bool] = lambda outcome: False,
) -> dict[Block, float]:
    """What each block's reversion makes of a metric on the hardest samples: the higher, the better, whatever its direction.

    Candidates are evaluated in the order of their noise. One that can no longer be among the best is given up; its score is
    then the best that it might have reached, which is below theirs.

    Args:
        evaluate: Evaluates tasks, e.g. `Session.evaluate`.
        problem: What is searched.
        goal: Of the metric.
        positions: The samples, hardest first.
        blocks: What to score.
        noise: Of `block_noise`.
        candidate_of: The model with one more block reverted.
        enough: Whether an outcome promises so much that blocks with less noise need not be scored.
    """
    kept = max(FEWEST_KEPT, ceil(len(blocks) / KEPT_SHARE))
    scores: dict[Block, float] = {}
    ordered = sorted(blocks, key=lambda block: -noise[block])
    for batch in (ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)):
        best = sorted(scores.values(), reverse=True)
        stop = BeyondReach(((goal.metric, goal.sign * best[kept - 1]),)) if len(best) >= kept else None
        outcomes = evaluate([Task(candidate_of(block), tuple(positions), stop) for block in batch])
        for block, outcome in zip(batch, outcomes, strict=True):
            done = outcome.rows[goal.metric]
            rest = problem.fp32[goal.metric][list(positions[len(done) :])]
            scores[block] = goal.sign * goal.scorer.value(np.concatenate([done, rest]))
        if any(outcome.complete and enough(outcome) for outcome in outcomes):
            break
    return scores


def ranked(scores: Mapping[Block, float], noise: Mapping[Block, float]) -> list[Block]:
    """The blocks, the most worthwhile first; of equal scores the noisier one."""
    return sorted(scores, key=lambda block: (-scores[block], -noise[block]))
