"""Revert layers to floating point until the accuracy budget holds, and write the model that gives least back for it.

result.json says what the budget is, how far the model is from it on the search's samples and on the held-out ones, and which
layers returned to floating point; trace.json has a line for every model that was tried, and why it was taken or not.

Examples:
    dvc repro accuracy_aware         # with `accuracy_aware: {enabled: true}` in params.yaml; killed, it goes on where it was
    dvc metrics show                 # the drops, on the search's samples and on the held-out ones
    dvc plots show                   # accuracy and layers in floating point over the iterations
    python -m stages.accuracy_aware  # this stage alone, from what is in build/
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import amount
from stages.configuration.schema import Config
from stages.stage import run

if TYPE_CHECKING:
    from pathlib import Path

    import openvino as ov

    from stages.search.candidates import Candidate
    from stages.search.problem import Problem
    from stages.search.reversion.budget import Budget
    from stages.search.reversion.trace import Step

NAME = "accuracy_aware"
PATIENCE_SECONDS = 5.0  # enough for a killed stage to end


def main(config: Config) -> dict[str, Any]:
    """Write build/accuracy_aware and build/reports/accuracy_aware.json.

    Raises:
        UserError: the budget cannot be met and accuracy_aware.on_failure is `fail`. The best model is written all the same.
    """
    settings = config.accuracy_aware
    if not settings.enabled:
        with artifacts.writing(artifacts.folder(NAME)) as folder:
            artifacts.write_inputs(folder, "evaluate")
            artifacts.write_json(folder / "result.json", {"enabled": False})
            artifacts.write_json(folder / "trace.json", [])
        artifacts.write_json(artifacts.REPORTS / f"{NAME}.json", {})
        return {"enabled": False}

    from stages.common.progress import Progress
    from stages.runtime import engine
    from stages.search.candidates import candidate_key
    from stages.search.evaluator import Task
    from stages.search.reversion.outcome import precision_json, report, result_json, trace_json
    from stages.search.reversion.search import Reversion
    from stages.search.reversion.setup import accuracy_problem, make_budget, measured_effects, mixed_candidate, start
    from stages.search.session import searching
    from stages.search.setup import cluster_start, write_candidate, write_fidelity, write_rows

    problem = accuracy_problem(config)
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    budget, parts = make_budget(config, problem)
    base, known = start(config, problem)
    mixed = mixed_candidate(config, problem, base)
    with searching(problem, NAME, config.cluster, cluster_start(config.cluster)) as session, Progress(NAME, unit="evaluations") as advance:
        search = Reversion(
            session,
            budget,
            settings,
            parts.search,
            partial(_print, budget),
            advance,
            config.evaluate.confidence,
            config.seed,
            measured_effects(config),
        )
        best = search.run(base, known, mixed)
        if known is not None and candidate_key(best.candidate) == candidate_key(base):
            rows = known
        else:
            others = tuple(position for position in range(len(problem.samples)) if position not in set(parts.search))
            rows = best.everywhere(parts.search, others, session.evaluate([Task(best.candidate, others)])[0].rows if others else None)
    result = result_json(config, problem, budget, parts, search, best, rows)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        artifacts.write_inputs(folder, "evaluate")
        as_it_was = settings.base_algorithm == "DefaultQuantization" and candidate_key(best.candidate) == candidate_key(base)
        model = None
        if as_it_was:
            _copy_model(folder)
        else:
            model = write_candidate(config, problem, best.candidate, _preset(config, best.candidate, mixed), folder)
        precision = evaluation["precisions"]["int8"] if model is None else engine.int8_precision(model, config.engine)
        result |= precision_json(result, evaluation, precision)
        write_rows(problem, NAME, rows, folder)
        write_fidelity(config, problem, model, folder)
        artifacts.write_json(folder / "trace.json", trace_json(search.trace, budget))
        artifacts.write_json(folder / "result.json", result)
        artifacts.write_json(folder / "latency.json", {} if model is None else _latency(config, problem, model))
    artifacts.write_json(artifacts.REPORTS / f"{NAME}.json", report(result))
    if not result["holds"] and settings.on_failure == "fail":
        raise UserError(
            f"the accuracy budget cannot be met: {result['shortfall']}; {artifacts.folder(NAME)} holds the best model found,"
            " and accuracy_aware.on_failure: keep goes on with it"
        )
    return {"enabled": True, "holds": result["holds"], "evaluated": session.evaluated, "remembered": session.remembered}


def _print(budget: Budget, step: Step) -> None:
    from stages.measurement.evaluation_report import is_share

    shares = {goal.metric: is_share(goal.scorer, [goal.baseline]) for goal in budget.goals}
    drops = ", ".join(f"{metric} drops by {amount({'share': shares[metric]}, drop)}" for metric, drop in (step.drops or {}).items())
    layers = f" {', '.join(step.layers[:2])}{', ...' if len(step.layers) > 2 else ''}" if step.layers else ""
    print(f"{NAME}: {step.phase}{layers}: {drops + '; ' if drops else ''}{step.why}", file=sys.stderr, flush=True)


def _copy_model(folder: Path) -> None:
    """The model of correct_bias, to the byte."""
    import shutil

    sources = {"quantize": ["quantizers.json"], "correct_bias": ["corrections.json", "model.xml", "model.bin"]}
    for stage, names in sources.items():
        for name in names:
            shutil.copyfile(artifacts.folder(stage) / name, folder / name)


def _preset(config: Config, candidate: Candidate, mixed: Candidate | None) -> str:
    """What quantizers.json calls it: asymmetric activations are the mixed preset's, where that was tried."""
    from stages.configuration.target_device import ACTIVATIONS

    asymmetric = any(entry.kind == ACTIVATIONS and not entry.scheme.symmetric for entry in candidate.plan.quantizers)
    return "mixed" if mixed is not None and asymmetric else config.quantization.preset


def _latency(config: Config, problem: Problem, model: ov.Model) -> dict[str, Any]:
    """Of the model, beside FP32 in both precisions and the INT8 model that has no layer reverted."""
    from stages.measurement import latency
    from stages.runtime import engine

    if not config.evaluate.benchmark.enabled:
        return {}
    int8 = engine.read_artifact(artifacts.folder("correct_bias"))
    models = {
        "fp32": (problem.model(), "f32"),
        "default": (problem.model(), "default"),
        "int8": (int8, engine.int8_precision(int8, config.engine)),
        NAME: (model, engine.int8_precision(model, config.engine)),
    }
    inputs = dict(enumerate(problem.samples[0].inputs.values()))
    return latency.side_by_side(models, config.engine, inputs, config.evaluate.benchmark.seconds)


if __name__ == "__main__":
    run(NAME, main, PATIENCE_SECONDS)
