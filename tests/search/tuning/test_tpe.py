"""Proposals: never twice the same, better than chance, and the same after an interruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.search.candidates import Candidate, candidate_key
from stages.search.tuning.space import FLOAT, Proposal, Space
from stages.search.tuning.tpe import RANDOM, TPE, Proposer, Settings, TrialOutcome
from tests.search.tuning.test_space import FULL_SCOPE, space


def identity(tested: Space) -> Any:
    return lambda proposal: candidate_key(Candidate(tested.plan(proposal)))


def searched(
    tested: Space, loss: Any, count: int, settings: Settings, batch: int = 1, trials: list[TrialOutcome] | None = None
) -> list[TrialOutcome]:
    """The trials of a search with a given objective, the base first."""
    trials = list(trials or [TrialOutcome(tested.base_proposal(), loss(tested.base_proposal()))])
    known = {identity(tested)(entry.proposal) for entry in trials}
    proposer = Proposer(tested, settings, identity(tested))
    while len(trials) < count:
        found = proposer.propose(trials, min(batch, count - len(trials)), known)
        if not found:
            break
        known |= {identity(tested)(proposal) for proposal in found}
        trials += [TrialOutcome(proposal, loss(proposal)) for proposal in found]
    return trials


def mistakes(proposal: Proposal) -> float:
    """How far from an optimum that is hidden in modes and layers."""
    wanted = {
        "quantize": "quantized",
        "activations.mode": "asymmetric",
        "weights.mode": "symmetric",
        "weights.estimator.preset": "quantile",
    }
    return sum(
        proposal.get(f"{layer}.{key}") != choice for layer in ("conv0", "conv1", "conv2", "conv3", "head") for key, choice in wanted.items()
    )


@pytest.fixture(scope="module")
def tested() -> Space:
    return space()


def test_better_than_chance(tested: Space) -> None:
    def best(sampler: str) -> float:
        runs = [searched(tested, mistakes, 40, Settings(seed, gamma=1.0, sampler=sampler)) for seed in range(3)]
        return sum(min(entry.loss for entry in run) for run in runs) / len(runs)

    assert best(TPE) < best(RANDOM) - 1


def test_every_trial_is_another_model(tested: Space) -> None:
    trials = searched(tested, mistakes, 25, Settings(1), batch=4)
    assert len({identity(tested)(entry.proposal) for entry in trials}) == 25


def test_small_space_is_exhausted_and_no_trial_wasted() -> None:
    tested = space(tuning_scope=["layer"], include=["conv1", "conv2"])
    trials = searched(tested, mistakes, 50, Settings(0))
    assert len(trials) == 4
    assert len({tuple(sorted(entry.proposal.items())) for entry in trials}) == 4


def test_interrupted_search_goes_on_as_if_it_had_not_been(tested: Space) -> None:
    whole = searched(tested, mistakes, 18, Settings(3), batch=2)
    assert searched(tested, mistakes, 18, Settings(3), batch=2, trials=whole[:13]) == whole
    assert searched(tested, mistakes, 18, Settings(4), batch=2) != whole


@pytest.mark.parametrize(
    "other", [Settings(3, n_initial_point=2), Settings(3, gamma=1.5), Settings(3, n_EI_candidates=2), Settings(3, sampler=RANDOM)]
)
def test_settings_decide(tested: Space, other: Settings) -> None:
    trials = searched(tested, mistakes, 3, Settings(3))
    assert searched(tested, mistakes, 18, Settings(3), trials=trials) != searched(tested, mistakes, 18, other, trials=trials)


def test_first_proposals_are_random_until_the_initial_points_are_there(tested: Space) -> None:
    trials = searched(tested, mistakes, 6, Settings(5, n_initial_point=6))
    known = {identity(tested)(entry.proposal) for entry in trials}
    flat = [TrialOutcome(entry.proposal, 0.0) for entry in trials]

    def next_one(history: list[TrialOutcome], n_initial_point: int) -> list[Proposal]:
        return Proposer(tested, Settings(5, n_initial_point=n_initial_point), identity(tested)).propose(history, 1, known)

    assert next_one(trials, 7) == next_one(flat, 7)  # what was found does not matter yet
    assert next_one(trials, 6) != next_one([TrialOutcome(entry.proposal, -entry.loss) for entry in trials], 6)


def test_constraint_is_kept_away_from() -> None:
    """The lower the loss, the more is beyond the constraint: without it the search would run there."""
    tested = space(tuning_scope=["layer", "mode"])

    def layers(proposal: Proposal) -> int:
        return sum(choice == FLOAT for name, choice in proposal.items() if name.endswith("quantize"))

    def mean(constrained: bool, seed: int) -> float:
        trials = [TrialOutcome(tested.base_proposal(), 0.0, -1.0 if constrained else None)]
        while len(trials) < 40:
            known = {identity(tested)(entry.proposal) for entry in trials}
            (proposal,) = Proposer(tested, Settings(seed), identity(tested)).propose(trials, 1, known)
            trials.append(TrialOutcome(proposal, -float(layers(proposal)), layers(proposal) - 1.5 if constrained else None))
        return sum(layers(entry.proposal) for entry in trials[-20:]) / 20

    with_constraint, without = (float(np.mean([mean(constrained, seed) for seed in range(3)])) for constrained in (True, False))
    assert with_constraint < without - 0.5


def test_full_scope_is_asked_in_moments() -> None:
    trials = searched(space(**FULL_SCOPE), mistakes, 14, Settings(0))
    assert len(trials) == 14
