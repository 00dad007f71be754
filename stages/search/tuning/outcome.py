"""What the TPE search reports, from its trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.measurement import evaluation_report
from stages.measurement.latency import speed_up, spread
from stages.search.acceptance import certainty_json
from stages.search.candidates import candidate_key
from stages.search.evaluator import Rows
from stages.search.tuning.search import COMPARED, Search, Trial

MOST_PARAMETERS = 30  # of the importance


def result_json(config: Config, search: Search, rows: Rows, loss: float) -> dict[str, Any]:
    """What result.json holds.

    Args:
        config: Of the pipeline.
        search: Finished.
        rows: Of the best model on all validation samples, by metric.
        loss: Its relative loss on all of them.
    """
    best, target = search.best, search.goal.target
    problem = search.session.problem
    judged = evaluation_report.report_metrics({"fp32": dict(problem.fp32), "int8": dict(rows)}, problem.metrics, config)
    return {
        "enabled": True,
        "ended": search.ended,
        "trials": len(search.trials),
        "given_up": sum(not trial.complete for trial in search.trials),
        "parameters": sum(1 for _ in search.space.parameters()),
        "budget": {
            "accuracy_loss": target.accuracy_loss,
            "latency_reduce": target.speed_up,
            "metrics": [name for name, _ in search.goal.baselines],
            "samples": len(search.goal.positions),
            "all_samples": len(problem.samples),
        },
        "best": {
            "trial": search.trials.index(best) + 1,
            "label": best.label,
            "accuracy_loss": _rounded(loss),
            "accuracy_loss_in_search": _rounded(best.score.accuracy_loss),
            "acceptance": _acceptance(search, best),
            "within_budget": loss <= target.accuracy_loss,
            "target_met": target.met(replace(best.score, accuracy_loss=loss)),
            "quantized_layers": _rounded(best.score.quantized),
            "layers": sum(len(unit.layers) for unit in search.space.units),
            "float_layers": _float_layers(search, best),
            "changed": _choices(search, best),
            "speed_up": best.speed_up and best.speed_up._asdict(),
            "latency_ms": best.latency_ms and best.latency_ms._asdict(),
            "metrics": judged,
        },
    }


def _acceptance(search: Search, best: Trial) -> dict[str, Any] | None:
    key = candidate_key(best.candidate)
    if search.family is None or key not in search.family:
        return None
    return certainty_json(search.family, key, sure=search.trials.index(best) in search.sure)


def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of reports/tune.json, those of reports/metrics.json and what became of the budget: no times."""
    return evaluation_report.metrics(result["best"]["metrics"]) | {"holds": int(result["best"]["within_budget"])}


def tables(search: Search) -> dict[str, list[dict[str, Any]]]:
    """The table of trials, and what the plots show: accuracy against speed, and the best so far."""
    return {"trials": trials(search), "trade_off": trade_off(search), "best_so_far": best_so_far(search.trials, search)}


def latency_json(search: Search) -> dict[str, Any]:
    """Of the finals: latencies, and how many times faster the best model is than FP32 (`default`) and the others it is compared with."""
    if not search.final_rounds:
        return {}
    best = str(search.trials.index(search.best))
    names = {"default": "default"} | {str(index): search.trials[index].label for index in search.finalists()}
    others = {index: name for index, name in names.items() if index != best and name in ("default", *COMPARED)}
    shown = {name: np.array(search.final_rounds[index]) for index, name in others.items()}
    times = np.array(search.final_rounds[best])
    return {
        "rounds": len(times),
        "latency_ms": {name: spread(1e3 * other)._asdict() for name, other in (shown | {"best": times}).items()},
        "speed_up": {name: speed_up(other, times)._asdict() for name, other in shown.items()},
    }


def trials(search: Search) -> list[dict[str, Any]]:
    """One row per trial."""
    return [
        {
            "trial": number,
            "label": trial.label,
            "loss": _rounded(trial.loss),
            "accuracy_loss": _rounded(trial.score.accuracy_loss),
            "speed_up": _rounded(trial.score.speed_up),
            "speed_up_low": trial.speed_up and _rounded(trial.speed_up.low),
            "speed_up_high": trial.speed_up and _rounded(trial.speed_up.high),
            "latency_ms": trial.latency_ms and _rounded(trial.latency_ms.median),
            "quantized_layers": _rounded(trial.score.quantized),
            "within_budget": trial.complete and search.goal.target.within_budget(trial.score),
            "samples": trial.samples,
            **{name: _rounded(value) for name, value in trial.values.items()},
            "seconds": round(trial.seconds, 3),
            "choices": _choices(search, trial),
        }
        for number, trial in enumerate(search.trials, start=1)
    ]


def trade_off(search: Search) -> list[dict[str, Any]]:
    """The primary metric over the speed-up, of FP32 and of every trial that was evaluated in full; the frontier's are marked.

    Where trials saw a part of the samples, the metric is what is expected on all of them: FP32's and the paired difference.
    """
    problem = search.session.problem
    metric, fp32 = problem.metrics[problem.primary], problem.fp32[problem.primary]
    shift = metric.value(fp32) - metric.value(fp32[list(search.goal.positions)])
    sign = 1.0 if metric.higher_is_better else -1.0
    finished = [(number, trial) for number, trial in enumerate(search.trials, start=1) if trial.complete]
    points = [(trial.score.speed_up, sign * trial.values[problem.primary]) for _, trial in finished]
    best = search.best
    rows: list[dict[str, Any]] = [
        {
            "model": "tuned" if trial is best else trial.label,
            "trial": number,
            "speed_up": _rounded(trial.score.speed_up),
            "accuracy": _rounded(trial.values[problem.primary] + shift),
            "kind": "frontier" if _on_frontier(point, points) else "trial",
        }
        for (number, trial), point in zip(finished, points, strict=True)
    ]
    if search.goal.timing is not None:
        measured = artifacts.read_json(artifacts.folder("evaluate") / "accuracy_speed.json")
        references = measured[:-1]  # the last one of them is FP32 in the default precision; INT8 is the first trial
        rows += [
            {
                "model": row["model"],
                "trial": None,
                "speed_up": _rounded(references[-1]["latency_ms"] / row["latency_ms"]),
                "accuracy": row["accuracy"],
                "kind": "reference",
            }
            for row in references
        ]
    return rows


def best_so_far(found: Sequence[Trial], search: Search) -> list[dict[str, Any]]:
    """After each trial the lowest loss, and the speed-up of the fastest trial within the budget (null: none yet)."""
    rows: list[dict[str, Any]] = []
    loss, speed_up = float("inf"), None
    for number, trial in enumerate(found, start=1):
        loss = min(loss, trial.loss)
        if trial.complete and search.goal.target.within_budget(trial.score):
            speed_up = max(speed_up or 0.0, trial.score.speed_up)
        rows.append({"trial": number, "loss": _rounded(loss), "speed_up": speed_up and _rounded(speed_up)})
    return rows


def importance(search: Search) -> list[dict[str, Any]]:
    """The parameters that explain most of the objective's variance over trials, the most important first.

    The share that a parameter's choices explain is epsilon squared (T. Kelley, An unbiased correlation ratio measure, PNAS 21,
    1935): about 0, and not the larger the more choices there are, for one that explains nothing.
    """
    loss = np.array([trial.loss for trial in search.trials])
    by_parameter: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, trial in enumerate(search.trials):
        for name, choice in trial.proposal.items():
            by_parameter[name][choice].append(number)
    rows: list[dict[str, Any]] = []
    for name, groups in by_parameter.items():
        share = explained([loss[numbers] for numbers in groups.values()])
        if share > 0:
            best = min(groups, key=lambda choice: float(loss[groups[choice]].mean()))
            rows.append({"parameter": name, "importance": _rounded(share), "best_choice": best, "trials": sum(map(len, groups.values()))})
    return sorted(rows, key=lambda row: (-row["importance"], row["parameter"]))[:MOST_PARAMETERS]


def explained(groups: Iterable[np.ndarray]) -> float:
    """Epsilon squared of values in groups: the share of their variance that the groups explain, corrected for chance."""
    kept = [group for group in groups if len(group)]
    values = np.concatenate(kept)
    freedom = len(values) - len(kept)
    total = float(np.sum((values - values.mean()) ** 2))
    if len(kept) < 2 or freedom < 1 or total <= 0:
        return 0.0
    within = float(sum(np.sum((group - group.mean()) ** 2) for group in kept))
    return 1.0 - within / freedom / (total / (len(values) - 1))


def _on_frontier(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return not any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in others)


def _choices(search: Search, trial: Trial) -> str:
    """What differs from the base, in words."""
    base = search.space.base_proposal()
    return "; ".join(f"{name}={choice}" for name, choice in sorted(trial.proposal.items()) if base.get(name, choice) != choice)


def _float_layers(search: Search, trial: Trial) -> list[str]:
    """Layers that the space could quantize, and the trial does not."""
    present = {quantizer.name for quantizer in trial.candidate.plan.quantizers}
    return [name for unit in search.space.units if not present.issuperset(unit.activations + unit.weights) for name in unit.layers]


def _rounded(value: float) -> float:
    return float(f"{value:.8g}")
