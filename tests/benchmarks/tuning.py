"""The search with TPE against chance on the bundled example, or on any project that has been built: the same space and trials.

TPE begins as the stage does, with presets, the accuracy-aware result and noisy layers left float; chance (Optuna's RandomSampler) draws
all of its trials.

    dvc repro                                     # with `tune: {enabled: true}` and `accuracy_aware: {enabled: true}` in params.yaml
    python -m tests.benchmarks.tuning             # five seeds each of TPE and of random search, 60 trials
    python -m tests.benchmarks.tuning --project ../built --seeds 3 --trials 30 --samples 200

Prints, trial by trial, the median over the seeds of the best speed-up within the budget so far; then, timed in the same rounds, the
best model of every search beside the presets and the accuracy-aware result; and what a trial costs beside building, compiling,
evaluating and timing its model, in CPU seconds, which do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from stages.common.units import ratio
from stages.configuration import schema
from stages.configuration.loading import load_config
from stages.measurement.latency import speed_up
from stages.search.evaluator import build_candidate, time_models
from stages.search.problem import Problem
from stages.search.session import Session, searching
from stages.search.tuning import tpe
from stages.search.tuning.outcome import best_so_far
from stages.search.tuning.search import COMPARED, Search, Trial
from stages.search.tuning.setup import make_search, make_space, starts, tuning_problem

SHOWN = 5  # a line of the curves for so many trials


class Measured:
    """A session that knows what its evaluations cost, in CPU seconds of this process."""

    def __init__(self, session: Session) -> None:
        self.problem, self.seconds, self._session = session.problem, 0.0, session

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        """As `Session.evaluate`."""
        began = time.process_time()
        found = self._session.evaluate(*arguments, **keywords)
        self.seconds += time.process_time() - began
        return found


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(), help="a project that has been built")
    parser.add_argument("--trials", type=int, default=60, help="trials of each search")
    parser.add_argument("--seeds", type=int, default=5, help="searches with each sampler")
    parser.add_argument("--samples", type=int, default=None, help="validation samples; all of them by default")
    parser.add_argument("--seconds", type=float, default=1.0, help="for timing a trial")
    arguments = parser.parse_args()
    os.chdir(arguments.project)

    config = load_config()
    benchmark = replace(config.tune.benchmark, duration_seconds=arguments.seconds)
    tune = replace(config.tune, max_trials=arguments.trials, benchmark=benchmark, eval_subset_size=arguments.samples)
    config = replace(config, tune=tune)
    problem = tuning_problem(config)
    local = schema.Cluster()
    found: dict[str, list[Search]] = {tpe.TPE: [], tpe.RANDOM: []}
    with searching(problem, "tune-benchmark", local) as session:
        for seed in range(arguments.seeds):
            for sampler, searches in found.items():
                searches.append(_searched(config, session, sampler, seed))
    _print_curves(found)
    _print_finals(problem, found)


def _searched(config: schema.Config, session: Session, sampler: str, seed: int) -> Search:
    """A finished search; the samples' order is that of seed 0, so that what is evaluated is remembered for the others."""
    measured: Any = Measured(session)
    search = make_search(config, measured, make_space(config, session.problem))
    search = replace(search, settings=replace(search.settings, sampler=sampler, seed=seed))
    given = starts(config, search, None) if sampler == tpe.TPE else []
    began = time.process_time()
    search.run(given)
    spent, alone = time.process_time() - began, measured.seconds
    inside = [trial for trial in search.trials if _inside(search, trial)]
    print(
        f"{sampler} {seed}: {len(search.trials)} trials, {len(inside)} within the budget, best {search.best.score.speed_up:.3f}x"
        f" ({search.best.label}); {spent:.0f} CPU s, {spent / alone:.3f} times those of the evaluations alone",
        flush=True,
    )
    return search


def _inside(search: Search, trial: Trial) -> bool:
    return trial.complete and search.goal.target.within_budget(trial.score)


def _print_curves(found: dict[str, list[Search]]) -> None:
    """The best within the budget so far, as times FP32's speed: the median over the seeds."""
    print(f"{'trial':>8} {'TPE':>8} {'random':>8}")
    curves = {sampler: [best_so_far(search.trials, search) for search in searches] for sampler, searches in found.items()}
    length = min(len(curve) for searches in curves.values() for curve in searches)
    for place in [0, *range(SHOWN - 1, length, SHOWN)]:
        values = [median(curve[place]["speed_up"] or 0.0 for curve in curves[sampler]) for sampler in (tpe.TPE, tpe.RANDOM)]
        print(f"{place + 1:>8} {values[0]:>8.3f} {values[1]:>8.3f}")


def _print_finals(problem: Problem, found: dict[str, list[Search]]) -> None:
    """All winners and what they are compared with, in the same rounds."""
    trials: dict[str, Trial] = {
        f"{sampler} {seed}": search.best for sampler, searches in found.items() for seed, search in enumerate(searches)
    }
    search = found[tpe.TPE][0]
    trials |= {trial.label: trial for trial in search.trials if trial.label in COMPARED and trial.complete}
    timing = search.goal.timing
    if timing is None:
        return
    models = {name: build_candidate(problem, trial.candidate)[0] for name, trial in trials.items()}
    rounds = time_models(problem, models, replace(timing, seconds=timing.seconds * (1 + len(models))))
    print(f"\n{'':>18} {'ms':>8} {'loss':>8}  against TPE 0")
    for name, trial in trials.items():
        loss = f"{100 * trial.score.accuracy_loss:.2f} %" + ("" if trial.complete else " (given up)")
        print(f"{name:>18} {1e3 * _middle(rounds[name]):>8.3f} {loss:>8}  TPE 0 is {ratio(_against(rounds, name), name)}")
    print(f"median of the winners, ms: TPE {_winners(rounds, tpe.TPE):.3f}, random {_winners(rounds, tpe.RANDOM):.3f}")


def _against(rounds: dict[str, np.ndarray], name: str) -> dict[str, float]:
    return dict(speed_up(rounds[name], rounds[f"{tpe.TPE} 0"])._asdict())


def _winners(rounds: dict[str, np.ndarray], sampler: str) -> float:
    return 1e3 * median(_middle(times) for name, times in rounds.items() if name.startswith(f"{sampler} "))


def _middle(times: Sequence[float] | np.ndarray) -> float:
    return float(np.median(times))


if __name__ == "__main__":
    main()
