"""Greedy reversion: what it reverts, keeps, undoes, tries again and gives up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.quantization.effect.blocks import Block
from stages.search.candidates import Candidate, candidate_key
from stages.search.evaluator import Task
from stages.search.journal import Journal
from stages.search.reversion import ranking
from stages.search.reversion import search as searching
from stages.search.reversion.budget import Budget
from stages.search.reversion.reverting import reverted
from stages.search.reversion.trace import State
from tests.search.problems import small_candidate
from tests.search.reverting import budget_of, culprit_problem, searched
from tests.search.scripted import COUNT, LAYERS, additive, returned, run_script

# ----------------------------------------------------------------------------------------- on real nets


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One journal for the whole module: what a test evaluated, the next one remembers."""
    return tmp_path_factory.mktemp("journal")


@pytest.mark.parametrize("culprit", [1, 3, 5])
def test_the_culprit_is_reverted_first_and_alone(culprit: int, journal: Path) -> None:
    problem = culprit_problem(80, culprit)
    found = searched(problem, budget_of(problem, accuracy=0.07), journal=journal)
    assert found.steps == [("base", (), True), ("revert", (f"conv{culprit}",), True)]
    assert found.best.holds and found.best.layers == (f"conv{culprit}",)
    assert found.search.stopped == ""


def test_nothing_is_reverted_where_the_budget_holds_anyway(journal: Path) -> None:
    problem = culprit_problem(80)
    found = searched(problem, budget_of(problem, accuracy=0.5), journal=journal, tune_hyperparams=True)
    assert found.steps == [("base", (), True)]
    assert found.best.holds and candidate_key(found.best.candidate) == candidate_key(small_candidate(problem))


def test_all_metrics_must_hold_in_their_own_direction(journal: Path) -> None:
    problem = culprit_problem(80)
    loose = searched(problem, budget_of(problem, accuracy=0.07, error=0.06), journal=journal).best
    assert loose.layers == ("conv3",)
    tight = searched(problem, budget_of(problem, accuracy=0.07, error=0.03), journal=journal).best
    assert tight.holds and len(tight.layers) > 1
    assert problem.metrics["error"].value(tight.rows["error"]) <= 0.03


def test_what_a_large_step_reverted_for_nothing_is_quantized_again(journal: Path) -> None:
    problem = culprit_problem(80)
    budget = budget_of(problem, error=0.02)
    found = searched(problem, budget, journal=journal)
    assert found.best.holds and ("re-quantize", True) in {(phase, accepted) for phase, _, accepted in found.steps}
    # No reverted block could be spared.
    for block in found.best.blocks:
        others = [other for other in found.best.blocks if other is not block]
        assert found.search._failed(reverted(small_candidate(problem), others))


def test_only_activations_are_restored(journal: Path) -> None:
    problem = culprit_problem(80)
    found = searched(problem, budget_of(problem, accuracy=0.07), journal=journal, restore="activations")
    left = {(place.name, place.port) for quantizer in found.best.candidate.plan.quantizers for place in quantizer.layers}
    assert ("conv3", 1) in left and ("conv3", 0) not in left


def test_a_search_that_was_killed_goes_on_and_evaluates_nothing_again(tmp_path: Path) -> None:
    problem = culprit_problem(40)
    budget = budget_of(problem, error=0.02)
    whole = searched(problem, budget, journal=tmp_path / "whole")
    total = whole.session.evaluated
    assert total > 10
    done = 0

    class Killed(BaseException):
        pass

    for points in (1, 4, 9, total - 1):

        def kill(count: int, end: int = points) -> None:
            nonlocal done
            done += count
            if done == end:
                raise Killed

        with pytest.raises(Killed):
            searched(problem, budget, journal=tmp_path / "killed", advance=kill)
        assert done == points
    again = searched(problem, budget, journal=tmp_path / "killed")
    assert again.session.evaluated == total - done
    assert again.search.trace == whole.search.trace
    assert candidate_key(again.best.candidate) == candidate_key(whole.best.candidate)
    with Journal(problem.key, "count", tmp_path / "killed") as written:
        assert len(written.known) == total
    lines = (tmp_path / "killed" / problem.key / "test.jsonl").read_text().splitlines()
    assert len(lines) == total


def test_held_out_samples_are_never_looked_at(tmp_path: Path) -> None:
    problem, seen = culprit_problem(80), set[int]()
    positions = tuple(range(0, 80, 2))

    def look(task: Task) -> None:
        assert task.positions is not None
        seen.update(task.positions)

    searched(problem, budget_of(problem, accuracy=0.05), positions=positions, evaluated=look, journal=tmp_path)
    assert seen == set(positions)


# ------------------------------------------------------------------------------------------- on scripted outcomes


def test_steps_grow_while_they_succeed_and_stop_when_the_budget_holds() -> None:
    found, _ = run_script(additive(conv0=10, conv1=9, conv2=8, conv3=6, conv4=1), allowed=0.1)
    forth = [set(step.layers) for step in found.search.trace if step.phase == "revert"]
    assert forth == [{"conv0"}, {"conv1", "conv2"}, {"conv3", "conv4", "conv5", "head"}]
    assert found.best.layers == ("conv0", "conv1", "conv2", "conv3")


@pytest.mark.parametrize(("gain", "chosen"), [(33, "head"), (40, "conv3")])
def test_a_ranking_ends_early_only_where_a_block_is_sure_to_be_enough(gain: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """conv3 is the most harmful block, head one of the second pair.

    7 of 80 wrong answers are within the 8 that are allowed, but on other samples they may be 12.
    """
    monkeypatch.setattr(ranking, "BATCH", 2)
    effects = {"conv3": 0.9, "conv1": 0.5, "head": 0.4, "conv0": 0.3, "conv2": 0.2, "conv4": 0.1, "conv5": 0.0}
    found, session = run_script(additive(conv3=gain, head=40), allowed=0.1, effects=effects)
    assert found.best.layers == (chosen,)
    ranked = {returned(task.candidate) for task in session.asked if task.positions is not None and len(task.positions) < COUNT}
    assert len(ranked) == {"conv3": 2, "head": 4}[chosen]  # in twos


def test_effects_of_another_model_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured of the base: where the mixed preset goes on, its blocks are measured anew."""
    handed: list[Mapping[str, float | None]] = []

    def noticed(*given: Any) -> Any:
        handed.append(given[-1])
        return ranking.by_effect(*given)

    monkeypatch.setattr(searching, "by_effect", noticed)
    effects = dict.fromkeys(LAYERS, 1.0)
    mixed = dataclasses.replace(small_candidate(culprit_problem(COUNT), preset="mixed"), label="mixed")
    run_script(additive(conv3=40), effects=effects)
    run_script(lambda candidate, _: 20 if candidate.label == "mixed" else 40, effects=effects, mixed=mixed, max_iter_num=1)
    run_script(additive(conv3=40), effects=effects, restore="activations")
    assert handed == [effects, {}, {}]


def test_of_models_with_equal_metrics_the_one_that_agrees_with_fp32_is_better() -> None:
    """The baseline is a number here: half of the samples. Three models that reach as much, and have other samples right than FP32."""
    problem = culprit_problem(COUNT)
    goal = dataclasses.replace(budget_of(problem, accuracy=0.1).goals[0], baseline=0.8)
    found, _ = run_script(additive())
    search = dataclasses.replace(found.search, budget=Budget((goal,)))

    def state(right: int, blocks: int) -> State:
        rows = {"accuracy": np.array([1.0] * right + [0.0] * (COUNT - right))[:, None]}
        kept = tuple(Block((f"{index}",), (f"{index}",), 1.0) for index in range(blocks))
        return State(small_candidate(problem), rows, 0.5, kept)

    near, far = state(50, 2), state(40, 1)  # FP32 has all right
    assert search._no_worse(near, far) and not search._no_worse(far, near) and search._no_worse(near, near)
    assert search._order(near) < search._order(far)
    held, cheaper = (dataclasses.replace(one, excess=-0.1) for one in (near, far))
    assert search._order(cheaper) < search._order(held)  # of models that keep the budget what gives back less


def test_success_on_the_last_allowed_iteration_is_success() -> None:
    found, _ = run_script(additive(conv3=35), max_iter_num=1)
    assert (found.best.holds, found.best.layers, found.search.stopped) == (True, ("conv3",), "")


def test_the_best_model_so_far_is_the_result_where_iterations_run_out() -> None:
    found, _ = run_script(additive(conv3=10, conv1=9), max_iter_num=1)
    assert not found.best.holds
    assert found.best.layers == ("conv3",)
    assert found.search.stopped == "accuracy_aware.max_iter_num, which is 1, is reached"


def worse_together(candidate: Candidate, reverted: frozenset[str]) -> int:
    """conv1 and conv2 help by themselves; conv2 hurts where conv1 is in floating point already."""
    wrong = 40 - 12 * ("conv1" in reverted) - 10 * ("conv2" in reverted) - 9 * ("conv3" in reverted) - 8 * ("conv4" in reverted)
    return min(60, wrong + 25 * ({"conv1", "conv2"} <= reverted))


def test_a_step_that_makes_it_worse_is_undone_and_not_tried_again_from_there() -> None:
    found, session = run_script(worse_together, allowed=11 / COUNT)
    assert found.best.holds and set(found.best.layers) == {"conv1", "conv3", "conv4"}
    undone = [step for step in found.search.trace if step.phase == "revert" and not step.accepted]
    assert undone and all(step.why.startswith("worse: undone") for step in undone)
    whole = session.whole()
    assert len(whole) == len(set(whole))  # no model twice


def test_every_line_of_the_trace_counts_what_was_reverted_in_the_model_that_was_tried() -> None:
    """Also where that was undone, and where its evaluation was given up early."""
    needed = additive(conv0=12, conv1=10, conv2=8, conv3=4, conv4=3, conv5=2, head=1)
    seen = set()
    for script, allowed in ((worse_together, 11 / COUNT), (needed, 8 / COUNT)):
        found, _ = run_script(script, allowed=allowed)
        state: frozenset[str] = frozenset()
        for step in found.search.trace:
            tried = state - {*step.layers} if step.phase == "re-quantize" else state | {*step.layers}
            assert step.reverted == len(tried)
            seen.add((step.phase, step.accepted, step.drops is None))
            state = tried if step.accepted else state
    assert seen >= {("revert", False, True), ("re-quantize", False, True), ("revert", True, False), ("re-quantize", True, False)}


def test_a_worse_step_is_kept_on_request_but_is_not_the_result() -> None:
    hurts = additive(conv1=12, conv2=-10)  # conv2 is reverted together with others
    careful, _ = run_script(hurts, allowed=0.01)
    careless, _ = run_script(hurts, allowed=0.01, use_prev_if_drop_increase=False)
    assert {step.accepted for step in careless.search.trace} == {True}
    assert "worse: kept, as use_prev_if_drop_increase is false" in {step.why for step in careless.search.trace}
    assert False in {step.accepted for step in careful.search.trace}
    assert careless.best.excess == careful.best.excess == pytest.approx((28 / COUNT - 0.01) / 0.01)
    assert careless.best.layers == careful.best.layers == ("conv1",)


def test_everything_is_reverted_before_it_is_given_up() -> None:
    def only_together(candidate: Candidate, reverted: frozenset[str]) -> int:
        return 0 if len(reverted) == 7 else 40 + len(reverted)

    found, _ = run_script(only_together)
    assert found.best.holds and len(found.best.layers) == 7


def test_a_budget_that_cannot_be_met_gives_the_best_model_and_the_reason() -> None:
    found, _ = run_script(lambda candidate, reverted: 30 if "conv4" in reverted else 40)
    assert not found.best.holds
    assert found.best.layers == ("conv4",)  # not what was reverted for nothing besides
    assert found.search.stopped in ("there is nothing left to revert", "no further reversion helps")


def test_time_that_is_used_up_ends_the_search_with_the_best_model() -> None:
    script = additive(conv0=10, conv1=9, conv2=8, conv3=6)
    found, session = run_script(script, allowed=0.1, max_minutes=0.2, seconds=1.3)  # 12 of 1 + 7 + 1 + 1 ...
    assert found.best.layers == ("conv0", "conv1", "conv2") and not found.best.holds
    assert found.search.stopped == "accuracy_aware.max_minutes, which is 0.2, is used up"
    assert 12 <= session.spent_seconds <= 12 + 1.3 * 7
    unlimited, longer = run_script(script, allowed=0.1, seconds=1.3)
    assert unlimited.search.stopped == "" and longer.spent_seconds > session.spent_seconds


@pytest.mark.parametrize(("size", "expected"), [(None, 40), (35, 35), (7, 7)])
def test_at_most_so_many_of_the_hardest_samples_rank(size: int | None, expected: int) -> None:
    _, session = run_script(additive(conv3=36), ranking_subset_size=size)
    ranking = [task.positions for task in session.asked[1:8]]
    assert {len(positions or ()) for positions in ranking} == {expected}
    assert all(set(positions or ()) <= set(range(40)) for positions in ranking)  # those that were lost


def test_the_cheapest_accuracy_is_quantized_again_first() -> None:
    found, _ = run_script(additive(conv0=12, conv1=10, conv2=8, conv3=4, conv4=3, conv5=2, head=1), allowed=8 / COUNT)
    back = [step for step in found.search.trace if step.phase == "re-quantize"]
    assert back[0].layers == ("head",)
    assert found.best.holds and found.best.layers == ("conv0", "conv1", "conv2", "conv3")[: len(found.best.layers)]


# ----------------------------------------------------------------------------------- before any layer is given up


def test_the_mixed_preset_is_kept_only_if_it_is_better() -> None:
    problem = culprit_problem(COUNT)
    mixed = dataclasses.replace(small_candidate(problem, preset="mixed"), label="mixed preset")

    def asymmetric(candidate: Candidate) -> bool:
        return any(not quantizer.scheme.symmetric for quantizer in candidate.plan.quantizers)

    good, _ = run_script(lambda candidate, reverted: 5 if asymmetric(candidate) else 40, mixed=mixed)
    assert good.steps == [("base", (), True), ("mixed preset", (), True)]
    assert asymmetric(good.best.candidate) and good.best.holds
    bad, _ = run_script(lambda candidate, reverted: 50 if asymmetric(candidate) else 0 if "conv2" in reverted else 40, mixed=mixed)
    assert bad.steps[:2] == [("base", (), True), ("mixed preset", (), False)]
    # A step's drop is that of the model which was tried, also where it was not taken.
    drops: list[Any] = [step.drops for step in bad.search.trace[:2]]
    assert drops == [{"accuracy": pytest.approx(wrong / COUNT)} for wrong in (40, 50)]
    assert not asymmetric(bad.best.candidate) and bad.best.layers == ("conv2",)


def quantile(candidate: Candidate, probability: float) -> bool:
    return any(q.estimator.max.outlier_prob == probability for q in candidate.plan.quantizers if q.kind == "activations")


def test_range_estimators_and_bias_correction_are_tuned_before_layers_are_given_up() -> None:
    def wrong(candidate: Candidate, reverted: frozenset[str]) -> int:
        return 40 - 20 * quantile(candidate, 1e-3) - 15 * (not candidate.bias_correction.use_fast_bias)

    found, _ = run_script(wrong, tune_hyperparams=True)
    assert found.best.holds and found.best.layers == ()
    assert quantile(found.best.candidate, 1e-3) and not found.best.candidate.bias_correction.use_fast_bias
    assert found.best.candidate.corrections  # found once
    assert found.steps == [("base", (), True), ("hyperparameters", (), True)]
    _, session = run_script(wrong)
    assert all(task.candidate.bias_correction.use_fast_bias and not quantile(task.candidate, 1e-3) for task in session.asked)


@pytest.mark.parametrize(("size", "expected"), [(None, COUNT), (7, 7)])
def test_hyperparameters_are_tuned_on_at_most_so_many_of_the_hardest_samples(size: int | None, expected: int) -> None:
    _, session = run_script(additive(conv3=36), tune_hyperparams=True, ranking_subset_size=size)
    tried = [task for task in session.asked[1:] if not returned(task.candidate)]
    assert len(tried) >= 3 and {len(task.positions or ()) for task in tried} == {expected}


def test_tuned_hyperparameters_that_are_no_better_on_all_samples_are_not_taken() -> None:
    # Better on the hardest samples only: what it wins there it loses elsewhere, which the base model gets right.
    problem = culprit_problem(COUNT)
    base = small_candidate(problem)

    class Moody:
        def __call__(self, candidate: Candidate, reverted: frozenset[str]) -> int:
            return 41 if quantile(candidate, 1e-4) and not reverted else 40 if not reverted else 0

    found, _ = run_script(Moody(), tune_hyperparams=True)
    assert [step.phase for step in found.search.trace].count("hyperparameters") <= 1
    assert not quantile(found.best.candidate, 1e-4)
    assert candidate_key(base) != candidate_key(found.best.candidate)
    assert returned(found.best.candidate)
