"""Which configurations to try next: Optuna's TPE sampler, asked and told in batches.

Proposals are a function of the trials so far: the sampler is seeded anew for every batch by their number. So a search that was
interrupted goes on as if it had not been, and one that is continued with more trials finds what it would have found at once.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.search.candidates import digest
from stages.search.tuning.space import Proposal, Space, SpaceParameter

if TYPE_CHECKING:
    import optuna

MOST_GOOD = 25  # trials that count as good, as in hyperopt
TPE_ATTEMPTS = 20  # duplicates in a row before chance takes over from the sampler
RANDOM_ATTEMPTS = 500  # duplicates in a row after which the space counts as exhausted
TPE, RANDOM = "tpe", "random"


@dataclass(frozen=True)
class TrialOutcome:
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


class Proposer:
    """Proposes what to try next. What it proposes follows from the trials so far alone; it keeps Optuna's study of them to save time.

    Args:
        space: What may be chosen.
        settings: Of the sampler.
        identity: What a proposal comes to: different choices may mean the same model.
    """

    def __init__(self, space: Space, settings: Settings, identity: Callable[[Proposal], str]) -> None:
        self._space, self._settings, self._identity = space, settings, identity
        self._studied: list[TrialOutcome] = []  # what the study holds
        self._study: optuna.Study | None = None

    def propose(self, trials: Sequence[TrialOutcome], count: int, known: Collection[str]) -> list[Proposal]:
        """Up to `count` proposals that are not known yet; fewer where the space holds no more.

        Args:
            trials: The trials so far.
            count: Trials that run in parallel.
            known: Identities that need no trial any more.
        """
        from optuna.trial import TrialState

        seed = int(digest([self._settings.seed, len(trials)])[:8], 16)
        study, chance = self._study_of(trials, seed), random.Random(seed)
        found: dict[str, Proposal] = {}
        running: list[int] = []
        while len(found) < count:
            proposal = self._new(study, chance, {*known, *found})
            if proposal is None:
                break
            found[self._identity(proposal)] = proposal
            if len(found) < count:  # the sampler keeps away from what runs (constant liar)
                study.add_trial(_trial(self._space, proposal, state=TrialState.RUNNING))
                running.append(len(study.get_trials(deepcopy=False)) - 1)
        for number in running:
            study.tell(number, state=TrialState.FAIL)
        return list(found.values())

    def _study_of(self, trials: Sequence[TrialOutcome], seed: int) -> optuna.Study:
        """A study of these trials, with a sampler that knows nothing else."""
        if self._study is None or list(trials[: len(self._studied)]) != self._studied:
            self._study, self._studied = _empty_study(), []
        for entry in trials[len(self._studied) :]:
            constraints = None if entry.excess is None else {"accuracy": entry.excess}
            self._study.add_trial(_trial(self._space, entry.proposal, value=entry.loss, constraints=constraints))
            self._studied.append(entry)
        self._study.sampler = _sampler(self._settings, seed)
        return self._study

    def _new(self, study: optuna.Study, chance: random.Random, known: Collection[str]) -> Proposal | None:
        """A proposal that is not known."""
        from optuna.trial import TrialState

        for _ in range(TPE_ATTEMPTS):
            trial = study.ask()
            drawn = trial.relative_params  # once: each look at them is a deep copy

            def answer(
                question: SpaceParameter, choices: tuple[str, ...], _: str, trial: optuna.Trial = trial, drawn: dict[str, Any] = drawn
            ) -> str:
                value = drawn.get(question.name)
                return str(value if value in choices else trial.suggest_categorical(question.name, choices))

            proposal = self._space.ask(answer)
            study.tell(trial, state=TrialState.FAIL)
            if self._identity(proposal) not in known:
                return proposal
        for _ in range(RANDOM_ATTEMPTS):
            proposal = self._space.ask(lambda _, choices, __: chance.choice(choices))
            if self._identity(proposal) not in known:
                return proposal
        return None


def _empty_study() -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="minimize")


def _sampler(settings: Settings, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if settings.sampler == RANDOM:
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        # `group` is experimental, and `gamma` deprecated without a replacement; pyproject.toml bounds the version.
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
            n_startup_trials=settings.n_initial_point,
            n_ei_candidates=settings.n_EI_candidates,
            gamma=lambda trials: min(math.ceil(settings.gamma * math.sqrt(trials)), MOST_GOOD),
        )


def _trial(space: Space, proposal: Proposal, **known: Any) -> optuna.trial.FrozenTrial:
    """A proposal as a trial of Optuna; what it does not say is as in the base."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {}

    def answer(question: SpaceParameter, choices: tuple[str, ...], default: str) -> str:
        distributions[question.name] = CategoricalDistribution(choices)
        return proposal.get(question.name, default)

    return create_trial(params=dict(space.ask(answer)), distributions=distributions, **known)
