"""Which configurations to try next: Optuna's TPE sampler, asked and told in batches.

`propose` is a function of the trials so far: the sampler is seeded anew for every batch by their number. So a search that was
interrupted goes on as if it had not been, and one that is continued with more trials finds what it would have found at once.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.search.candidates import digest
from stages.search.space import Proposal, Question, Space

if TYPE_CHECKING:
    import optuna

MOST_GOOD = 25  # trials that count as good, as in hyperopt
TPE_ATTEMPTS = 20  # duplicates in a row before chance takes over from the sampler
RANDOM_ATTEMPTS = 500  # duplicates in a row after which the space counts as exhausted
TPE, RANDOM = "tpe", "random"


@dataclass(frozen=True)
class Told:
    """What the sampler learns of a trial.

    Attributes:
        proposal: The choices.
        loss: The lower, the better.
        excess: How far beyond the constraint it is, 0 or less within; None: there is no constraint.
    """

    proposal: Proposal
    loss: float
    excess: float | None = None


@dataclass(frozen=True)
class Settings:
    """How TPE works.

    Attributes:
        seed: Of everything drawn.
        n_initial_point: Before so many trials, proposals are drawn at random.
        gamma: gamma * sqrt(trials) of them count as good, as in hyperopt.
        n_EI_candidates: Draws, of which the one that is most likely good is proposed.
        sampler: `tpe`, or `random` to compare it with.
    """

    seed: int
    n_initial_point: int = 10
    gamma: float = 0.3
    n_EI_candidates: int = 24  # noqa: N815
    sampler: str = TPE


def propose(
    space: Space,
    told: Sequence[Told],
    count: int,
    settings: Settings,
    identity: Callable[[Proposal], str],
    known: Collection[str],
) -> list[Proposal]:
    """Up to `count` proposals that are not known yet; fewer where the space holds no more.

    Args:
        space: What may be chosen.
        told: The trials so far.
        count: Trials that run in parallel.
        settings: Of the sampler.
        identity: What a proposal comes to: different choices may mean the same model.
        known: Identities that need no trial any more.
    """
    seed = int(digest([settings.seed, len(told)])[:8], 16)
    study = _study(space, told, settings, seed)
    chance = random.Random(seed)
    found: dict[str, Proposal] = {}
    for _ in range(count):
        proposal = _new(space, study, chance, lambda proposal: identity(proposal) in known or identity(proposal) in found)
        if proposal is None:
            break
        found[identity(proposal)] = proposal
    return list(found.values())


def _new(space: Space, study: optuna.Study, chance: random.Random, duplicate: Callable[[Proposal], bool]) -> Proposal | None:
    """A proposal that is no duplicate. Its trial stays open: the sampler keeps away from what runs (constant liar)."""
    from optuna.trial import TrialState

    for _ in range(TPE_ATTEMPTS):
        trial = study.ask()
        proposal = space.ask(lambda question, choices, _, trial=trial: str(trial.suggest_categorical(question.name, choices)))  # type: ignore[misc]
        if not duplicate(proposal):
            return proposal
        study.tell(trial, state=TrialState.FAIL)
    for _ in range(RANDOM_ATTEMPTS):
        proposal = space.ask(lambda _, choices, __: chance.choice(choices))
        if not duplicate(proposal):
            return proposal
    return None


def _study(space: Space, told: Sequence[Told], settings: Settings, seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)
    if settings.sampler == TPE:
        with warnings.catch_warnings():
            # `group` is experimental and `gamma` deprecated without a replacement; pyproject.toml bounds the version.
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
                n_startup_trials=settings.n_initial_point,
                n_ei_candidates=settings.n_EI_candidates,
                gamma=lambda trials: min(math.ceil(settings.gamma * math.sqrt(trials)), MOST_GOOD),
            )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    study.add_trials([_finished(space, entry) for entry in told])
    return study


def _finished(space: Space, entry: Told) -> optuna.trial.FrozenTrial:
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {}

    def answer(question: Question, choices: tuple[str, ...], default: str) -> str:
        distributions[question.name] = CategoricalDistribution(choices)
        return entry.proposal.get(question.name, default)

    proposal = space.ask(answer)
    constraints = None if entry.excess is None else {"accuracy": entry.excess}
    return create_trial(params=dict(proposal), distributions=distributions, value=entry.loss, constraints=constraints)
