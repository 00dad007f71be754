"""How the result of the stage accuracy_aware reads, in the summary and in MLflow; all of it empty where the stage is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stages.common.units import amount, difference, drop, logged, number, plural, ratio, some
from stages.report import search_results

NAME = "accuracy_aware"

# What the stage wrote; `trace` has a row for every model that was tried, `speed` is empty too where the INT8 model was kept.
result = partial(search_results.result, NAME)
trace = partial(search_results.table, NAME, "trace")
speed = partial(search_results.speed, NAME)


def summary_lines() -> list[str]:
    """Whether the budget holds, where it was confirmed, what that cost."""
    found = result()
    if not found:
        return []
    if found["holds"]:
        lines = [f"accuracy budget: holds{search_results.how_sure(found['acceptance'])}, judged in {found['precision']}"]
    else:
        lines = [f"accuracy budget: NOT MET: {found['shortfall']}; this is the best model found"]
    for name, metric in found["metrics"].items():
        limit = difference(metric, metric["limit"])
        words = [f"drop {drop(metric, metric)} of {limit} allowed on {found['samples']['search']} samples"]
        if metric["held_out"]:
            words.append(f"{drop(metric, metric['held_out'])} on {found['samples']['held_out']} held-out samples")
        lines.append(f"  {name}: {', '.join(words)}")
    lines += certainty(found)
    if found["holds"] and found["confirmed"] is False:
        lines.append("  NOT CONFIRMED: on the held-out samples the drop is larger than allowed; more validation samples would tell")
    if found["holds"] and found["stopped"]:
        lines.append(f"  {found['stopped']}: some layers may have been reverted for nothing")
    return [*lines, *cost(found), *(f"  WARNING: {warning}" for warning in search_results.warnings(NAME))]


def certainty(found: Mapping[str, Any]) -> list[str]:
    """What is known of the drop on samples that nobody has seen, and how many samples would tell more."""
    acceptance = found["acceptance"]
    if not acceptance or not found["holds"]:
        return []
    if not acceptance["holds"]:
        bounds = {name: amount(found["metrics"][name], bound) for name, bound in acceptance["bounds"].items()}
        return [f"  {search_results.uncertainty(acceptance, bounds)}"]
    if not (fewer := acceptance.get("fewer")) or fewer["layers"] < 1:
        return []
    spared = f": about {fewer['samples']} samples to search with would spare them" if fewer["samples"] else ""
    return [f"  {plural(fewer['layers'], 'operation')} of those in floating point for that confidence alone{spared}"]


def cost(found: Mapping[str, Any]) -> list[str]:
    """How many operations went back to floating point, and what became of the latency."""
    layers = [entry["layer"] for entry in found["reverted"]]
    of = found["quantized"] + len(layers)
    names = f": {some(layers)}" if layers else ""
    lines = [f"  {len(layers)} of {plural(of, 'operation')} back in floating point{names}"]
    if measured := speed():
        latency, before = measured["latency_ms"], measured["speed_up"]["int8"]
        times = ", ".join(f"{number(latency[model]['median'])} ms {words}" for model, words in ((NAME, "now"), ("int8", "before")))
        lines.append(f"  latency {times}: {ratio(before, 'INT8 with no layer reverted')}")
    return lines


def metrics() -> dict[str, float | None]:
    """For MLflow: what the chosen model reaches."""
    found = result()
    if not found:
        return {}
    values: dict[str, float | None] = {"holds": float(found["holds"]), "reverted_layers": float(len(found["reverted"]))}
    values["models_tried"] = float(found["models_tried"])
    for name, metric in found["metrics"].items():
        values |= logged(metric, name, {key: metric[key] for key in ("drop", "value", "drop_low", "drop_high", "limit")})
        if metric["held_out"]:
            held_out = {f"held_out_{key}": metric["held_out"][key] for key in ("value", "drop", "drop_low", "drop_high")}
            values |= logged(metric, name, held_out)
    if measured := speed():
        values["latency_ms"] = measured["latency_ms"][NAME]["median"]
        values |= {f"speed_up.{model}": spread["median"] for model, spread in measured["speed_up"].items()}
    values["fidelity"] = search_results.fidelity(NAME).get("ratio")
    return {f"{NAME}/{name}": value for name, value in values.items()}


def steps() -> list[tuple[str, float, int]]:
    """For MLflow: name, value and iteration of what changes from model to model."""
    rows, metrics = trace(), result().get("metrics", {})
    found = [(f"{NAME}.steps/reverted_layers", float(row["reverted_layers"]), int(row["iteration"])) for row in rows]
    for row in rows:
        for name, value in (row["drops"] or {}).items():
            ((key, drop),) = logged(metrics[name], name, {"drop": value}).items()
            found.append((f"{NAME}.steps/{key}", float(drop or 0.0), int(row["iteration"])))
    return found
