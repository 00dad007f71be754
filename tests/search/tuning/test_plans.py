"""Plans of a small net in which one layer is noisy by construction, and searches that begin with them or do nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.configuration import schema
from stages.search.candidates import Candidate, candidate_key
from stages.search.planning.knapsack import FLOAT
from stages.search.planning.output_noise import noise_problem
from stages.search.problem import Problem
from stages.search.tuning.objective import Target
from stages.search.tuning.plans import Plans, make_plans, measured_times
from stages.search.tuning.search import PLAN, Search
from stages.search.tuning.space import Space
from tests.search.problems import small_plan
from tests.search.reverting import session_of
from tests.search.tuning.searching import GOAL, Counting, outline, searching, starts

# Of an error of 1 no more than 0.03 may be left; the fully quantized model has 0.06.
STRICT = replace(GOAL, target=Target(accuracy_loss=-0.97, quantized_weight=1.0))


def candidate(plan: Any, label: str) -> Candidate:
    return Candidate(plan, schema.BiasCorrection(), (), label)


@pytest.fixture(scope="module")
def plans(problem: Problem, space: Space) -> Plans:
    mixed, exact = space.proposal(small_plan(problem, preset="mixed"))
    assert exact
    variants = {"base": space.base_proposal(), "mixed": mixed}
    times = measured_times(problem, space, variants, candidate, None)
    with session_of(noise_problem(problem)) as session:
        return make_plans(space, variants, times, candidate, session, 4)


def test_every_unit_may_be_float_or_as_in_one_of_the_presets(plans: Plans, space: Space) -> None:
    assert list(plans.units) == [unit.name for unit in space.units]
    assert all({"base", FLOAT} <= options.keys() <= {"base", "mixed", FLOAT} for options in plans.units.values())
    assert all(options[FLOAT].noise == 0 < options["base"].noise for options in plans.units.values())


def test_where_all_units_take_the_same_time_the_noisiest_are_left_float_first(plans: Plans) -> None:
    ranked = sorted(plans.units, key=lambda unit: -plans.units[unit]["base"].noise)
    assert [set(rung.layers) for rung in plans.rungs] == [set(ranked[:count]) for count in range(len(plans.rungs))]


def test_rungs_become_quieter_and_slower_and_their_noise_is_their_own(plans: Plans, problem: Problem) -> None:
    noise, times = [rung.noise for rung in plans.rungs], [rung.time for rung in plans.rungs]
    assert len(plans.rungs) >= 3 and noise == sorted(noise, reverse=True) and times == sorted(times)
    assert [rung.start.label for rung in plans.rungs[:2]] == ["plan 1", "plan 2"]
    assert plans.additivity is not None and 0.1 < plans.additivity < 10
    # Worked out without any of it: outputs of the plan's model against those of FP32.
    from stages.runtime import engine
    from stages.search.evaluator import build_candidate

    quiet = noise_problem(problem)
    rung = plans.rungs[0]
    compiled = engine.compile(build_candidate(quiet, rung.start.candidate)[0], quiet.engine, "f32")
    samples = list(problem.samples[:64])
    found = [np.array(outputs[0]) for outputs in engine.infer(compiled, samples)]
    references = [np.array(outputs[0]) for outputs in quiet.references(range(len(samples)))]
    shares = [np.sum((one - two) ** 2) / np.sum(two**2) for one, two in zip(found, references, strict=True)]
    assert rung.noise == pytest.approx(np.mean(shares), rel=1e-5)


def planned(problem: Problem, space: Space, folder: Path, plans: Plans, submit: Any = None, **changes: Any) -> Search:
    goal = replace(STRICT, strategy=PLAN, **changes)
    with searching(problem, space, folder, goal, submit) as search:
        search.run(starts(search)[:1], plans=plans)
    return search


def test_a_search_by_plans_ends_with_them(problem: Problem, space: Space, plans: Plans, tmp_path: Path) -> None:
    search = planned(problem, space, tmp_path, plans, max_trials=30)
    labels = [trial.label for trial in search.trials]
    assert labels[0] == "fully quantized" and set(labels[1:]) <= {rung.start.label for rung in plans.rungs}
    assert 1 < len(labels) <= 1 + plans.count
    assert search.ended == "what was planned is evaluated"
    table = plans.table(search.trials)
    assert [row["plan"] for row in table] == [f"plan {number}" for number in range(1, len(plans.rungs) + 1)]
    # The first plan is the fully quantized model, the first trial.
    assert sorted(row["trial"] for row in table if row["trial"]) == list(range(1, len(labels) + 1))


def test_what_everything_in_int8_keeps_needs_no_plan(problem: Problem, space: Space, plans: Plans, tmp_path: Path) -> None:
    search = planned(problem, space, tmp_path, plans, target=GOAL.target)
    assert [trial.label for trial in search.trials] == ["fully quantized"]  # plan 1 is the same model


def test_no_more_plans_than_are_allowed(problem: Problem, space: Space, plans: Plans, tmp_path: Path) -> None:
    search = planned(problem, space, tmp_path, replace(plans, count=1), max_trials=30)
    assert len(search.trials) == 2


def test_tpe_begins_with_plans_and_then_with_what_is_left_float(problem: Problem, space: Space, plans: Plans, tmp_path: Path) -> None:
    with searching(problem, space, tmp_path, replace(STRICT, max_trials=8)) as search:
        search.run(starts(search)[:1], plans=replace(plans, count=2), more=starts(search)[1:])
    labels = [trial.label for trial in search.trials]
    assert labels[0] == "fully quantized" and labels[1].startswith("plan ")
    later = labels.index("without conv2")
    assert all(label.startswith("plan ") for label in labels[1:later]) and not any(label.startswith("plan ") for label in labels[later:])
    assert len(labels) == 8


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_search_by_plans_that_was_killed_goes_on(
    problem: Problem, space: Space, plans: Plans, tmp_path: Path, allowed: int, outlined: Callable[[], Any]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        planned(problem, space, tmp_path, plans, Counting(problem, allowed), max_trials=30)
    counting = Counting(problem)
    again = planned(problem, space, tmp_path, plans, counting, max_trials=30)
    assert outline(again) == outlined()
    assert len(counting.tasks) == len(again.trials) - allowed


@pytest.fixture(scope="module")
def outlined(problem: Problem, space: Space, plans: Plans, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    whole = planned(problem, space, tmp_path_factory.mktemp("whole"), plans, max_trials=30)
    return lambda: outline(whole)


def test_a_unit_that_must_stay_quantized_does(problem: Problem, space: Space) -> None:
    fixed = Space(space.offer, schema.TuneSpace(tuning_scope=["mode"]), [unit.name for unit in space.units])
    variants = {"base": fixed.base_proposal()}
    times = measured_times(problem, fixed, variants, candidate, None)
    with session_of(noise_problem(problem)) as session:
        found = make_plans(fixed, variants, times, candidate, session, 4)
    assert all(list(options) == ["base"] for options in found.units.values())
    assert [candidate_key(rung.start.candidate) for rung in found.rungs] == [candidate_key(candidate(fixed.offer.plan, ""))]
