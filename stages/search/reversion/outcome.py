"""What the accuracy-aware search reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.common.units import amount, difference
from stages.configuration.schema import Config
from stages.measurement import evaluation_report
from stages.quantization.model.graph import read_graph
from stages.search.acceptance import certainty_json
from stages.search.candidates import candidate_key
from stages.search.evaluator import Rows
from stages.search.problem import Problem
from stages.search.reversion.budget import Budget, Goal, Parts, drop_interval
from stages.search.reversion.search import Reversion
from stages.search.reversion.trace import CEILING, REVERT, State, Step


def result_json(
    config: Config, problem: Problem, budget: Budget, parts: Parts, search: Reversion, best: State, rows: Rows
) -> dict[str, Any]:
    """Content of result.json; `metrics` are on the search's samples, `judged` on all, in the words of evaluation.json.

    rows: of the chosen model on all validation samples.
    """
    metrics = {goal.metric: _judged(config, problem, goal, parts, rows) for goal in budget.goals}
    graph = read_graph(problem.model())
    first, correction = search.trace[0], best.candidate.bias_correction
    held_out = [entry["held_out"] for entry in metrics.values() if entry["held_out"] is not None]
    short = [
        f"{name} drops by {amount(entry, entry['drop'])} where {difference(entry, entry['limit'])} is allowed"
        for name, entry in metrics.items()
        if budget.goals[list(metrics).index(name)].excess(entry["value"]) > 0
    ]
    return {
        "enabled": True,
        "holds": best.holds,
        # A budget that the held-out samples contradict at the configured confidence was kept by choosing, not by the model.
        "confirmed": all(entry["drop_low"] is None or entry["drop_low"] <= entry["limit"] for entry in held_out) if held_out else None,
        "acceptance": acceptance_json(search, best),
        "shortfall": "" if best.holds else "; ".join([*short, search.stopped or "nothing better was found"]),
        "stopped": search.stopped,
        "metrics": metrics,
        "judged": evaluation_report.report_metrics({"fp32": dict(problem.fp32), "int8": dict(rows)}, problem.metrics, config),
        "before": first.drops,
        "values": {name: rounded(metric.value(rows[name])) for name, metric in problem.metrics.items()},  # on all samples
        "confidence": config.evaluate.confidence,
        "samples": {"search": len(parts.search), "held_out": len(parts.held_out)},
        "start": best.candidate.label,
        "bias_correction": ("fast" if correction.use_fast_bias else "accurate") if correction.enabled else None,
        "models_tried": len(search.trace),
        "quantized": len({place.name for entry in best.candidate.plan.quantizers for place in entry.layers or entry.consumers}),
        "reverted": [
            {"layer": layer, "type": graph.by_name[layer].type, "block": number, "step": _step_of(layer, search.trace)}
            for number, block in enumerate(best.blocks)
            for layer in block.layers
        ],
    }


def acceptance_json(search: Reversion, best: State) -> dict[str, Any] | None:
    """What result.json says of the budget on samples that nobody has seen; None where nobody asked (accuracy_aware.acceptance).

    `fewer` is what the model that gives least back of those that keep the budget on the search samples would spare.
    """
    if search.family is None:
        return None
    found = certainty_json(search.family, candidate_key(best.candidate), sure=bool(search.sure))
    if search.best is not None and search.best.holds and search.best.cost < best.cost:
        needed = search.family.samples_needed(candidate_key(search.best.candidate))
        found["fewer"] = {"layers": len(best.layers) - len(search.best.layers), "samples": needed}
    return found


def precision_json(result: Mapping[str, Any], evaluation: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """What result.json says of the precision in which the chosen model was judged, and of what that loses by itself.

    Args:
        result: Content of result.json so far.
        evaluation: Content of evaluation.json.
        precision: Of the chosen model, `default` for the device's.
    """
    default = evaluation["precisions"]["default"]
    precision = default if precision == "default" else precision
    lost = [
        f"{default} alone, without any quantization, makes {name} worse by {amount(judged, judged['precision_drop'])} on all samples,"
        " which no reversion brings back: engine.inference_precision: f32 does"
        for name, entry in result["metrics"].items()
        if not result["holds"] and (judged := evaluation["metrics"][name]).get("precision_drop", 0.0) > entry["limit"]
    ]
    return {"precision": precision, "shortfall": "; ".join([*([result["shortfall"]] if result["shortfall"] else []), *lost])}


def trace_json(trace: Sequence[Step], budget: Budget) -> list[dict[str, Any]]:
    """Content of trace.json: a row per model that was tried. `drop` is that of the first metric, which the plot shows."""
    first = budget.goals[0].metric
    return [
        {
            "iteration": step.iteration,
            "phase": step.phase,
            "layers": list(step.layers),
            "reverted_layers": step.reverted,
            "drop": None if step.drops is None else rounded(step.drops[first]),
            "drops": None if step.drops is None else {name: rounded(drop) for name, drop in step.drops.items()},
            "limit": rounded(budget.goals[0].limit),
            "accepted": step.accepted,
            "why": step.why,
        }
        for step in trace
    ]


def report(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of build/reports/accuracy_aware.json: those of reports/metrics.json, and what became of the budget."""
    return evaluation_report.metrics(result["judged"]) | {"holds": int(result["holds"]), "reverted_layers": len(result["reverted"])}


def rounded(value: float) -> float:
    """Eight significant digits: what is beyond is noise of the arithmetic."""
    return float(f"{value:.8g}")


def _judged(config: Config, problem: Problem, goal: Goal, parts: Parts, rows: Rows) -> dict[str, Any]:
    """A metric on the search's samples and, under `held_out`, on the others."""

    def on(positions: Sequence[int]) -> dict[str, Any]:
        own, fp32 = rows[goal.metric][list(positions)], problem.fp32[goal.metric][list(positions)]
        baseline = goal.baseline if goal.given else goal.scorer.value(fp32)
        # A relative limit is relative to these samples' baseline.
        limit = goal.limit * abs(baseline / goal.baseline) if config.accuracy_aware.drop_type == "relative" else goal.limit
        here = Goal(goal.metric, goal.scorer, baseline, limit)
        drop = drop_interval(here, None if goal.given else fp32, own, config.evaluate.confidence, config.seed)
        numbers: dict[str, float | None] = {"baseline": baseline, "limit": limit, "value": goal.scorer.value(own)}
        numbers |= {"drop": drop.value, "drop_low": drop.low, "drop_high": drop.high}
        return {name: None if value is None else rounded(value) for name, value in numbers.items()}

    found = on(parts.search)
    share = evaluation_report.is_share(goal.scorer, (found["baseline"], found["value"]))
    direction = {"higher_is_better": goal.scorer.higher_is_better, "share": share}
    return {**direction, **found, "held_out": on(parts.held_out) if parts.held_out else None}


def _step_of(layer: str, trace: Sequence[Step]) -> int:
    """The step that reverted a layer for good: the last one that was taken, or else that tried the model which was chosen in the end."""
    tried = [step for step in trace if step.phase in (REVERT, CEILING) and layer in step.layers]
    return max(step.iteration for step in [step for step in tried if step.accepted] or tried)
