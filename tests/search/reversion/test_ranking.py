"""Ranking: the hardest samples, the proxy, and the same order as brute force with less work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stages.quantization.effect.blocks import Block, blocks_of
from stages.quantization.effect.measure import Effects
from stages.quantization.model.graph import read_graph
from stages.runtime.metrics import Accuracy, ReferenceError
from stages.search.evaluator import Outcome, Task, build_candidate, evaluate
from stages.search.reversion import ranking
from stages.search.reversion.budget import Budget, make_goal
from stages.search.reversion.reverting import reverted
from tests.search.problems import small_candidate
from tests.search.reverting import budget_of, culprit_problem


def rows(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_samples_that_lost_most_come_first() -> None:
    budget = Budget((make_goal("a", Accuracy(), 1.0, 0.1, "absolute"), make_goal("b", ReferenceError(), 0.0, 0.1, "absolute")))
    fp32 = {"a": rows(1, 0, 1, 1, 1), "b": rows(0, 0, 0, 0, 0)}
    now = {"a": rows(1, 1, 1, 0, 1), "b": rows(0.1, 0.2, 0.0, 0.0, 4.0)}
    # 4 lost all that any sample lost of b, 3 of a; then b's smaller losses; 2 lost nothing.
    assert ranking.hardest(budget, fp32, now).tolist() == [3, 4, 1, 0, 2]
    one = Budget(budget.goals[:1])
    assert ranking.hardest(one, fp32, now).tolist() == [3, 0, 2, 4, 1]  # 1 became better
    many = {"a": rows(*[1] * 50)}
    assert ranking.subset_size(one, many, {"a": rows(*[0] * 40, *[1] * 10)}, 300) == 40
    assert ranking.subset_size(one, many, {"a": rows(*[0] * 40, *[1] * 10)}, 20) == 20
    assert ranking.subset_size(one, many, {"a": rows(*[0] * 3, *[1] * 47)}, 300) == ranking.FEWEST_SAMPLES
    assert ranking.subset_size(one, fp32, now, 300) == 5


@pytest.fixture(scope="module")
def prepared() -> tuple[dict[Block, float], dict[Block, float]]:
    """The blocks of the culprit's net with their noise, and what brute force finds: each one's accuracy on all samples."""
    problem = culprit_problem(80)
    base = small_candidate(problem)
    blocks = blocks_of(read_graph(problem.model()), base.plan, "activations_and_weights")
    noise = ranking.block_noise(problem, base.plan, build_candidate(problem, base)[1], blocks, tuple(range(80)))
    accuracy = problem.metrics["accuracy"]
    return noise, {block: accuracy.value(evaluate(problem, Task(reverted(base, [block]))).rows["accuracy"]) for block in blocks}


def test_the_proxy_finds_the_noisiest_block(prepared: tuple[dict[Block, float], dict[Block, float]]) -> None:
    noise, _ = prepared
    assert max(noise, key=lambda block: noise[block]).name == "conv3"
    assert all(value > 0 for value in noise.values())


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_order_is_that_of_brute_force_and_hopeless_blocks_are_given_up(
    prepared: tuple[dict[Block, float], dict[Block, float]], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BATCH", batch)
    monkeypatch.setattr(ranking, "FEWEST_KEPT", 1)
    monkeypatch.setattr(ranking, "KEPT_SHARE", 7)
    noise, brute = prepared
    problem, outcomes = culprit_problem(80), list[Outcome]()
    budget = budget_of(problem, accuracy=0.0)
    base = small_candidate(problem)
    blocks = sorted(noise, key=lambda block: -noise[block])

    def evaluated(tasks: Sequence[Task]) -> list[Outcome]:
        outcomes.extend(evaluate(problem, task) for task in tasks)
        return outcomes[-len(tasks) :]

    scores = ranking.score_blocks(
        evaluated,
        problem,
        budget,
        budget.goals[0],
        tuple(range(80)),
        blocks,
        lambda block: reverted(base, [block]),
    )
    order = ranking.ranked(scores, blocks)
    best = max(brute, key=lambda block: brute[block])
    assert order[0] is best and order[0].name == "conv3"
    assert scores[best].value == brute[best]
    assert all(scores[block].value >= brute[block] for block in brute)  # a bound where it was given up
    assert any(not outcome.complete for outcome in outcomes) == (batch < 8)


def test_ranking_ends_where_a_block_promises_to_be_enough(
    prepared: tuple[dict[Block, float], dict[Block, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BATCH", 2)
    noise, _ = prepared
    problem, base = culprit_problem(80), small_candidate(culprit_problem(80))
    budget = budget_of(problem, accuracy=0.0)

    def scored(enough: bool) -> dict[Block, ranking.Score]:
        return ranking.score_blocks(
            lambda tasks: [evaluate(problem, task) for task in tasks],
            problem,
            budget,
            budget.goals[0],
            tuple(range(32)),
            list(noise),
            lambda block: reverted(base, [block]),
            lambda outcome: enough,
        )

    assert len(scored(True)) == 2
    assert len(scored(False)) == len(noise)


def test_of_equal_scores_what_agrees_with_fp32_comes_first_then_the_more_harmful_block() -> None:
    harmful, other, apart, best = (Block((name,), (name,), 1.0) for name in ("harmful", "other", "apart", "best"))
    scores = {other: (0.5, 0.1), apart: (0.5, 0.2), harmful: (0.5, 0.1), best: (0.6, 0.3)}
    order = ranking.ranked({block: ranking.Score(*values) for block, values in scores.items()}, [apart, harmful, other, best])
    assert order == [best, harmful, other, apart]


def test_blocks_are_tried_in_the_order_of_their_effect_on_the_outputs() -> None:
    problem = culprit_problem(80)
    base = small_candidate(problem)
    blocks = blocks_of(read_graph(problem.model()), base.plan, "activations_and_weights")
    assert ranking.by_effect(problem, base, blocks, tuple(range(80)), {})[0].name == "conv3"
    known = {block.name: float(index) for index, block in enumerate(blocks)}
    assert ranking.by_effect(problem, base, blocks, (), known) == list(reversed(blocks))  # nothing is run


def test_where_no_effect_can_be_measured_noise_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = culprit_problem(80)
    base = small_candidate(problem)
    blocks = blocks_of(read_graph(problem.model()), base.plan, "activations_and_weights")
    noise = ranking.block_noise(problem, base.plan, build_candidate(problem, base)[1], blocks, tuple(range(16)))
    monkeypatch.setattr(ranking, "measure", lambda *_: Effects(reason="the model keeps a state"))
    found = ranking.by_effect(problem, base, blocks, tuple(range(16)), {"conv0": None})
    assert found == sorted(blocks, key=lambda block: -noise[block])
