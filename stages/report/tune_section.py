"""The report's part on the search with TPE, from the artifacts of the stage `tune`; None and empty where it is disabled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.units import metric_value, number, plural
from stages.report import tune
from stages.report.tradeoff import HEIGHT, GridLine, Point, labels, ticks

NAME = "tuned"
FULL = "fully quantized"  # is the model of correct_bias, or stands for it
CURVE_HEIGHT = HEIGHT / 2
MOST_PARAMETERS = 12
FAR_BELOW = 4.0  # trials that lose so many times what is allowed are left out of the picture: they would flatten the rest


@dataclass(frozen=True)
class BestSoFarCurve:
    """The best speed-up so far over trials: corners across in percent and down in pixels, and the lines of the grid."""

    corners: tuple[tuple[float, float], ...]
    x_ticks: tuple[GridLine, ...]
    y_ticks: tuple[GridLine, ...]
    height: float = CURVE_HEIGHT


@dataclass(frozen=True)
class ParameterImportance:
    """How much of the objective's variance a parameter explains, and its best choice; `width` in percent of the longest."""

    parameter: str
    choice: str
    width: float
    share: str


@dataclass(frozen=True)
class Tuning:
    """What the search found, and what it tried."""

    outcome: str
    ended: str
    parameters: int
    speeds: tuple[str, ...]
    layers: str
    changed: str
    curve: BestSoFarCurve | None
    influences: tuple[ParameterImportance, ...]
    trials: tuple[Mapping[str, Any], ...]
    within: bool
    model: Path


def tuning(default: str) -> Tuning | None:
    """The section on the search.

    Args:
        default: The device's default precision.
    """
    found = tune.result()
    if not found:
        return None
    best, measured = found["best"], tune.speed()
    return Tuning(
        outcome=f"{tune.budget(found)}. It is trial {best['trial']} of {found['trials']} ({best['label']})",
        ended=f"{found['ended']}; {plural(found['given_up'], 'trial')} given up early, as their loss was clearly beyond the budget",
        parameters=found["parameters"],
        speeds=tuple(tune.ratios(measured, default)) if measured else (),
        layers=tune.layers(found),
        changed=best["changed"] or "nothing",
        curve=_curve(tune.table("best_so_far")),
        influences=tuple(_influences(tune.table("importance"))),
        trials=tuple(tune.table("trials")),
        within=best["within_budget"],
        model=artifacts.folder(tune.NAME) / "model.xml",
    )


def points(metric: Mapping[str, Any], default_ms: float) -> tuple[list[Point], list[Point]]:
    """Of the picture of accuracy against speed: the tuned model and what was given to the search, and its other trials.

    A trial's speed was measured as a ratio to FP32 in the default precision, in the same moments; here it is that ratio applied
    to what the default precision takes.

    Args:
        metric: The primary one, as `evaluate` judged it.
        default_ms: Latency of FP32 in the default precision, milliseconds.
    """
    found = tune.result()
    if not found or not found["best"]["speed_up"]:
        return [], []
    factor = 100.0 if metric["share"] else 1.0
    allowed = FAR_BELOW * max(found["budget"]["accuracy_loss"], 0.001) * abs(metric["fp32"])
    named: list[Point] = []
    others: list[Point] = []
    for row in tune.table("trade_off"):
        worse = (metric["fp32"] - row["accuracy"]) * (1.0 if metric["higher_is_better"] else -1.0)
        if row["kind"] == "reference" or row["model"] == FULL or (row["model"] != NAME and worse > allowed):
            continue
        milliseconds = default_ms / row["speed_up"]
        text = f"{metric_value(metric, row['accuracy'])}, {number(milliseconds)} ms"
        kind = {NAME: "tune", "accuracy_aware": "accuracy_aware"}.get(row["model"], row["kind"])
        given = kind in ("tune", "accuracy_aware") or row["model"].startswith("preset ")
        name = row["model"] if given else f"trial {row['trial']}, {row['model']}"
        (named if given else others).append(Point(name, kind, milliseconds, factor * row["accuracy"], text))
    return named, others


def _curve(rows: Sequence[Mapping[str, Any]]) -> BestSoFarCurve | None:
    """A step at each trial that was better; None where none kept the budget."""
    known = [(row["trial"], row["speed_up"]) for row in rows if row["speed_up"] is not None]
    if not known:
        return None
    last = max(len(rows), 2)
    y_ticks = ticks(min(1.0, known[0][1]), known[-1][1])
    low, high = y_ticks[0], y_ticks[-1]
    numbers = [value for value in ticks(0.0, float(last)) if 1 <= value <= last]

    def across(trial: float) -> float:
        return round(100 * (trial - 1) / (last - 1), 3)

    def down(value: float) -> float:
        return round(CURVE_HEIGHT * (1 - (value - low) / (high - low)), 2)

    corners = [(across(known[0][0]), down(known[0][1]))]
    for trial, value in known[1:]:
        corners += [(across(trial), corners[-1][1]), (across(trial), down(value))]
    return BestSoFarCurve(
        tuple(corners),
        tuple(GridLine(across(value), text) for value, text in zip(numbers, labels(numbers), strict=True)),
        tuple(GridLine(down(value), f"{text}×") for value, text in zip(y_ticks, labels(y_ticks), strict=True)),
    )


def _influences(rows: Sequence[Mapping[str, Any]]) -> list[ParameterImportance]:
    shown = rows[:MOST_PARAMETERS]
    return [
        ParameterImportance(
            row["parameter"], row["best_choice"], 100 * row["importance"] / shown[0]["importance"], f"{100 * row['importance']:.0f} %"
        )
        for row in shown
    ]
