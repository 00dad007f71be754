"""How the result of the stage tune reads, in the summary and in MLflow; all of it empty where the stage is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stages.common.units import amount, drop, logged, metric_value, number, plural, ratio, some
from stages.report import search_results

NAME = "tune"
MODEL = ("model.xml", "model.bin", "quantizers.json")  # what makes a result another one; not its timings
STEPS = ("loss", "accuracy_loss", "speed_up", "latency_ms", "quantized_layers")  # of trials.json
SHARES = ("accuracy_loss", "quantized_layers")
BEST = ("loss", "speed_up")  # of best_so_far.json

# What the stage wrote.
result = partial(search_results.result, NAME)
table = partial(search_results.table, NAME)
speed = partial(search_results.speed, NAME)


# ------------------------------------------------------------------------------------------------ summary


def summary_lines(default: str) -> list[str]:
    """Which trial is best, whether it keeps the budget, and what it gained.

    Args:
        default: The device's default precision.
    """
    found = result()
    if not found:
        return []
    best = found["best"]
    given_up = f" ({found['given_up']} given up early)" if found["given_up"] else ""
    lines = [f"tuned: {budget(found)}; trial {best['trial']} of {found['trials']}{given_up}: {best['label']}"]
    lines += certainty(best)
    for name, metric in best["metrics"].items():
        lines.append(f"  {name}: {metric_value(metric, metric['int8'])}, drop {drop(metric, metric)}")
    if measured := speed():
        lines.append(f"  latency {number(measured['latency_ms']['best']['median'])} ms: {', '.join(ratios(measured, default))}")
    return [*lines, f"  {layers(found)}", *(f"  WARNING: {warning}" for warning in search_results.warnings(NAME))]


def budget(found: Mapping[str, Any]) -> str:
    """`0.45 % of exact_match lost, 1 % allowed`."""
    best, asked = found["best"], found["budget"]
    loss, seen = best["accuracy_loss"], best["accuracy_loss_in_search"]
    change = f"{abs(100 * loss):.2f} % of {' or '.join(asked['metrics'])} {'gained' if loss < 0 else 'lost'}"
    text = f"{change}, {100 * asked['accuracy_loss']:g} % allowed"
    if best["within_budget"]:
        return text
    if seen > asked["accuracy_loss"]:
        return f"BUDGET NOT KEPT: {text}"
    where = f"on all {asked['all_samples']} samples"
    return f"BUDGET NOT KEPT {where}: {text}, on the search's {asked['samples']} it was {100 * seen:.2f} %"


def certainty(best: Mapping[str, Any]) -> list[str]:
    """Whether the budget holds on samples that nobody has seen, where that was asked."""
    acceptance = best["acceptance"]
    if not acceptance or not best["within_budget"]:
        return []
    if acceptance["holds"]:
        return [f"  within the budget{search_results.how_sure(acceptance)}"]
    bounds = {name: amount(best["metrics"][name], bound) for name, bound in acceptance["bounds"].items()}
    return [f"  within the budget{search_results.how_sure(acceptance)}; {search_results.uncertainty(acceptance, bounds)}"]


def ratios(measured: Mapping[str, Any], default: str) -> list[str]:
    """How much faster the best model is than each of the others, or that there is no difference."""
    return [ratio(spread, f"FP32 in {default}" if name == "default" else name) for name, spread in measured["speed_up"].items()]


def layers(found: Mapping[str, Any]) -> str:
    """How many layers stay in floating point, and which."""
    left, total = found["best"]["float_layers"], found["best"]["layers"]
    names = f": {some(left)}" if left else ""
    return f"{len(left)} of {plural(total, 'layer')} stay in floating point{names}"


# ------------------------------------------------------------------------------------------------ MLflow


def metrics() -> dict[str, float | None]:
    """What the best model reaches."""
    found = result()
    if not found:
        return {}
    best = found["best"]
    values: dict[str, float | None] = {name: float(best[name]) for name in ("within_budget", "target_met")}
    values["accuracy_loss_percent"] = 100 * best["accuracy_loss"]
    values |= {"trials": float(found["trials"]), "given_up": float(found["given_up"]), "float_layers": float(len(best["float_layers"]))}
    for name, metric in best["metrics"].items():
        values |= logged(metric, name, {"value": metric["int8"], **{key: metric[key] for key in ("drop", "drop_low", "drop_high")}})
    if measured := speed():
        values["latency_ms"] = measured["latency_ms"]["best"]["median"]
        values |= {f"speed_up.{name}": spread["median"] for name, spread in measured["speed_up"].items()}
    values["fidelity"] = search_results.fidelity(NAME).get("ratio")
    return {f"{NAME}/{name}": value for name, value in values.items()}


def steps() -> list[tuple[str, float, int]]:
    """Name, value and number of what changes from trial to trial."""
    found = []
    for prefix, rows, keys in (("trial", table("trials"), STEPS), ("best", table("best_so_far"), BEST)):
        for row in rows:
            known = {_logged(key): _number(key, row[key]) for key in keys if row[key] is not None}
            found += [(f"{NAME}.trials/{prefix}.{key}", value, int(row["trial"])) for key, value in known.items()]
    return found


def _logged(key: str) -> str:
    """The name of a trial's number where no unit is shown beside it."""
    return f"{key}_percent" if key in SHARES else key


def _number(key: str, value: float) -> float:
    return 100 * value if key in SHARES else float(value)
