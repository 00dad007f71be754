"""Search over every layer's own configuration with TPE: the fastest model within an accuracy budget.

trials.json has a row per trial, result.json says which one is best and whether it keeps the budget. `--show-space` prints what
may be chosen for each layer, and stops.

Examples:
    python -m stages.tune --show-space     # before a long run
    dvc repro tune                         # with `tune: {enabled: true}` in params.yaml; killed, it goes on where it was
    dvc plots show                         # the trials, the best so far, and what mattered most
    python -m stages.tune                  # this stage alone, from what is in build/
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.loading import load_config
from stages.configuration.schema import Config
from stages.stage import fail, run

if TYPE_CHECKING:
    from stages.quantization.placement.plan import Plan
    from stages.search.problem import Problem
    from stages.search.tuning.history import History
    from stages.search.tuning.plans import Plans
    from stages.search.tuning.search import Search

NAME = "tune"
EVAL, WARM_START, FINE_TUNE = "eval", "warm_start", "fine_tune"
TABLES = ("trials", "trade_off", "best_so_far", "importance", "plans")
SHOW_SPACE = "--show-space"


def main(config: Config) -> dict[str, Any]:
    """Write build/tune and build/reports/tune.json."""
    settings = config.tune
    if not settings.enabled:
        with artifacts.writing(artifacts.folder(NAME)) as folder:
            artifacts.write_json(folder / "result.json", {"enabled": False})
            for name in TABLES:
                artifacts.write_json(folder / f"{name}.json", [])
        artifacts.write_json(artifacts.REPORTS / f"{NAME}.json", {})
        return {"enabled": False}

    from stages.search.session import searching
    from stages.search.setup import cluster_start
    from stages.search.tuning.setup import left_out, make_history, make_search, make_space, more_starts, plan_trials, starts, tuning_problem

    problem = tuning_problem(config)
    if settings.trials_load_method == EVAL:
        return _rebuild(config, problem, make_history(config, problem, None))
    best = _fine_tune_base(config, problem) if settings.trials_load_method == FINE_TUNE else None
    space = make_space(config, problem, best)
    history = make_history(config, problem, space)
    plans = plan_trials(config, problem, space, history)
    with searching(problem, NAME, config.cluster, cluster_start(config.cluster)) as session:
        search = make_search(config, session, space)
        for sentence in left_out(config):
            print(f"{NAME}: {sentence}", file=sys.stderr, flush=True)
        if settings.trials_load_method == WARM_START:
            search.resume_from(history.load(space, search.candidate))
            if not search.trials:
                print(f"{NAME}: there are no earlier trials of this search space to go on with: a new search", file=sys.stderr)

        def done() -> None:
            history.save(search.trials, space, search.candidate)
            _print(search)

        given = starts(config, search, best)
        search.run(given, done, plans, more_starts(config, search, len(given)))
        search.assure()
        if search.goal.timing is not None and search.goal.time_here:
            search.final_rounds = history.finals(search.trials, search.finalists(), search.finals)
        if settings.trials_load_method != FINE_TUNE:
            history.forget_bases()
        _write(config, search, history, plans)
    return {"enabled": True, "trials": len(search.trials), "evaluated": session.evaluated, "remembered": session.remembered}


def _fine_tune_base(config: Config, problem: Problem) -> Plan:
    from stages.search.tuning.setup import make_history, settings_key

    best = make_history(config, problem, None).base(settings_key(config))
    if best is None:
        raise _nothing_before(FINE_TUNE)
    return best


def _nothing_before(method: str) -> UserError:
    return UserError(
        f"tune.trials_load_method: '{method}' is not allowed here; expected cold_start, as there is no earlier result for this model,"
        " data and code"
    )


def _print(search: Search) -> None:
    trial, target = search.trials[-1], search.goal.target
    loss = f"loss {100 * trial.score.accuracy_loss:.2f} %" + ("" if trial.complete else f" after {trial.samples} samples: given up")
    speed = f", {trial.score.speed_up:.2f}x" if trial.speed_up is not None else ""
    best = search.best
    kept = f"best {best.score.speed_up:.2f}x" if best.complete and target.within_budget(best.score) else "none within the budget"
    print(f"{NAME}: {len(search.trials)}/{search.goal.max_trials} {trial.label}: {loss}{speed}; {kept}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ what is written


def _write(config: Config, search: Search, history: History, plans: Plans | None) -> None:
    from stages.search.setup import write_candidate, write_fidelity, write_rows
    from stages.search.tuning.outcome import importance, latency_json, report, result_json, tables

    problem = search.session.problem
    rows, loss = search.confirm()
    result = result_json(config, search, rows, loss) | {"additivity": plans and plans.additivity}
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        model = write_candidate(config, problem, search.best.candidate, _preset(config), folder)
        write_rows(problem, NAME, rows, folder)
        write_fidelity(config, problem, model, folder)
        for name, table in (tables(search) | {"importance": importance(search)}).items():
            artifacts.write_json(folder / f"{name}.json", table)
        artifacts.write_json(folder / "plans.json", plans.table(search.trials) if plans else [])
        artifacts.write_json(folder / "latency.json", latency_json(search))
        artifacts.write_json(folder / "result.json", result)
        history.keep_result(folder, {"report.json": report(result)})
    artifacts.write_json(artifacts.REPORTS / f"{NAME}.json", report(result))


def _preset(config: Config) -> str:
    return config.tune.space.preset or config.quantization.preset


def _rebuild(config: Config, problem: Problem, history: History) -> dict[str, Any]:
    """Only the last result's model; everything else as it was."""
    import shutil

    from stages.search.candidates import Candidate, corrections_of_quantized
    from stages.search.setup import base_candidate, write_candidate

    plan = history.last_plan()
    if plan is None:
        raise _nothing_before(EVAL)
    correction = config.bias_correction
    kept = corrections_of_quantized(base_candidate(config).candidate.corrections, plan, correction.apply_for_all_nodes)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        for path in sorted(history.result.iterdir()):
            if path.name != "report.json":
                shutil.copyfile(path, folder / path.name)
        write_candidate(config, problem, Candidate(plan, correction, kept), _preset(config), folder)
    artifacts.write_json(artifacts.REPORTS / f"{NAME}.json", artifacts.read_json(history.result / "report.json"))
    return {"enabled": True, "trials": 0, "evaluated": 0, "remembered": 0}


def show_space() -> int:
    """Print the space and return the exit code."""
    try:
        config = load_config()
        from stages.search.tuning.setup import left_out, make_space, tuning_problem

        print("\n".join([*make_space(config, tuning_problem(config)).describe(), *left_out(config)]))
    except UserError as error:
        return fail(NAME, error, artifacts.folder(NAME))
    return 0


if __name__ == "__main__":
    if SHOW_SPACE in sys.argv[1:]:
        sys.exit(show_space())
    run(NAME, main)
