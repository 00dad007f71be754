"""The report's part on the accuracy budget, from the artifacts of the stage `accuracy_aware`; None and empty where it is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.units import amount, drop, metric_value, number, plural
from stages.report import accuracy_aware
from stages.report.tradeoff import Point

NAME = "budget kept"
FAILED = "closest to the budget"


@dataclass(frozen=True)
class BudgetRow:
    """How a metric stands to its budget: a line of the table."""

    metric: str
    allowed: str
    search: str
    held_out: str


@dataclass(frozen=True)
class TraceRow:
    """A model that was tried: a line of the trace."""

    number: int
    phase: str
    layers: str
    reverted: int
    drop: str
    verdict: str


@dataclass(frozen=True)
class BudgetSection:
    """What the search gave back, and what it tried."""

    column: str
    outcome: str
    cost: tuple[str, ...]
    metrics: tuple[BudgetRow, ...]
    search_samples: int
    held_out_samples: int
    reverted: tuple[Mapping[str, Any], ...]
    tried: tuple[TraceRow, ...]
    traced: str  # the metric whose drop the trace shows
    holds: bool
    model: Path


def section() -> BudgetSection | None:
    """The section on the accuracy budget."""
    found = accuracy_aware.result()
    if not found:
        return None
    lines = accuracy_aware.summary_lines()
    metrics = tuple(_budget_row(name, metric) for name, metric in found["metrics"].items())
    first, judged = next(iter(found["metrics"].items()))
    cost = accuracy_aware.cost(found)
    remarks = [line.strip() for line in lines[1 + len(metrics) : len(lines) - len(cost)]]
    return BudgetSection(
        column=NAME if found["holds"] else FAILED,
        outcome=". ".join([_sentence(lines[0]), *map(_sentence, remarks)]),
        cost=tuple(_sentence(line.strip()) for line in cost),
        metrics=metrics,
        search_samples=found["samples"]["search"],
        held_out_samples=found["samples"]["held_out"],
        reverted=tuple(found["reverted"]),
        tried=tuple(_tried(row, judged) for row in accuracy_aware.trace()),
        traced=first,
        holds=found["holds"],
        model=artifacts.folder(accuracy_aware.NAME) / "model.xml",
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _budget_row(name: str, metric: Mapping[str, Any]) -> BudgetRow:
    held_out = drop(metric, metric["held_out"]) if metric["held_out"] else "–"
    return BudgetRow(name, amount(metric, metric["limit"]), drop(metric, metric), held_out)


def _tried(row: Mapping[str, Any], metric: Mapping[str, Any]) -> TraceRow:
    lost = "–" if row["drop"] is None else amount(metric, row["drop"])
    return TraceRow(row["iteration"], row["phase"], ", ".join(row["layers"]), row["reverted_layers"], lost, row["why"])


def points(name: str, metric: Mapping[str, Any], default_ms: float) -> list[Point]:
    """The model in the picture of accuracy against speed; none where it is the INT8 model itself, or was not timed.

    Its speed was measured as a ratio to FP32 in the default precision, in the same moments; here it is that ratio applied to what
    the default precision takes.

    Args:
        name: The primary metric.
        metric: As `evaluate` judged it.
        default_ms: Latency of FP32 in the default precision, milliseconds.
    """
    found, measured = accuracy_aware.result(), accuracy_aware.speed()
    if not found or not measured:
        return []
    ratio = measured["speed_up"]["default"]
    milliseconds, value = default_ms / ratio["median"], found["values"][name]
    text = f"{metric_value(metric, value)}, {number(milliseconds)} ms"
    spread = (default_ms / ratio["high"], default_ms / ratio["low"])
    factor = 100.0 if metric["share"] else 1.0
    label = f"{NAME if found['holds'] else FAILED}, {plural(len(found['reverted']), 'layer')} back"
    return [Point(label, accuracy_aware.NAME, milliseconds, factor * value, text, spread)]
