"""How the result of the stage accuracy_aware reads, in the summary and in MLflow; all of it empty where the stage is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages import artifacts
from stages.units import difference, number, plural

NAME = "accuracy_aware"
MOST_LAYERS = 4


def result() -> dict[str, Any]:
    """Content of result.json; empty where the stage is disabled."""
    found: dict[str, Any] = artifacts.read_json(artifacts.folder(NAME) / "result.json")
    return found if found["enabled"] else {}


def summary_lines() -> list[str]:
    """Whether the budget holds, where it was confirmed, what that cost."""
    found = result()
    if not found:
        return []
    lines = [
        "accuracy budget: holds" if found["holds"] else f"accuracy budget: NOT MET: {found['shortfall']}; this is the best model found"
    ]
    for name, metric in found["metrics"].items():
        words = [_drop(metric, metric, found["samples"]["search"])]
        if metric["held_out"]:
            words.append(_drop(metric, metric["held_out"], found["samples"]["held_out"], "held-out "))
        lines.append(f"  {name}: {', '.join(words)}")
    if found["holds"] and found["confirmed"] is False:
        lines.append("  NOT CONFIRMED: on the held-out samples the drop is larger than allowed; more validation samples would tell")
    if found["holds"] and found["stopped"]:
        lines.append(f"  {found['stopped']}: some layers may have been reverted for nothing")
    return [*lines, *_cost(found)]


def _cost(found: Mapping[str, Any]) -> list[str]:
    layers = [entry["layer"] for entry in found["reverted"]]
    of = found["quantized"] + len(layers)
    names = f": {', '.join(layers[:MOST_LAYERS])}{', ...' if len(layers) > MOST_LAYERS else ''}" if layers else ""
    lines = [f"  {len(layers)} of {plural(of, 'operation')} back in floating point{names}"]
    speed = artifacts.read_json(artifacts.folder(NAME) / "latency.json")
    if speed:
        latency, ratio = speed["latency_ms"], speed["speed_up"]["int8"]
        times = ", ".join(f"{number(latency[model]['median'])} ms {words}" for model, words in ((NAME, "now"), ("int8", "INT8 before")))
        lines.append(f"  latency {times}: {ratio['median']:.2f}x the speed [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    return lines


def _drop(metric: Mapping[str, Any], numbers: Mapping[str, Any], samples: int, which: str = "") -> str:
    unit = " points" if metric["share"] else ""
    interval = ""
    if numbers["drop_low"] is not None:
        interval = f" [{difference(metric, numbers['drop_low'])}, {difference(metric, numbers['drop_high'])}]"
    return (
        f"drop {difference(metric, numbers['drop'])}{unit}{interval} of {difference(metric, numbers['limit'])} allowed"
        f" on {samples} {which}samples"
    )


def metrics() -> dict[str, float | None]:
    """For MLflow: what the chosen model reaches."""
    found = result()
    if not found:
        return {}
    values: dict[str, float | None] = {"holds": float(found["holds"]), "reverted_layers": float(len(found["reverted"]))}
    values["models_tried"] = float(found["models_tried"])
    for name, metric in found["metrics"].items():
        values |= {f"{key}.{name}": metric[key] for key in ("value", "drop", "drop_low", "drop_high", "limit")}
        if metric["held_out"]:
            values |= {f"held_out_{key}.{name}": metric["held_out"][key] for key in ("value", "drop", "drop_low", "drop_high")}
    speed = artifacts.read_json(artifacts.folder(NAME) / "latency.json")
    if speed:
        values["latency_ms"] = speed["latency_ms"][NAME]["median"]
        values |= {f"speed_up.{model}": ratio["median"] for model, ratio in speed["speed_up"].items()}
    return {f"{NAME}/{name}": value for name, value in values.items()}


def steps() -> list[tuple[str, float, int]]:
    """For MLflow: name, value and iteration of what changes from model to model."""
    rows = artifacts.read_json(artifacts.folder(NAME) / "trace.json")
    found = [(f"{NAME}.steps/reverted_layers", float(row["reverted_layers"]), int(row["iteration"])) for row in rows]
    for row in rows:
        found += [(f"{NAME}.steps/drop.{name}", float(drop), int(row["iteration"])) for name, drop in (row["drops"] or {}).items()]
    return found
