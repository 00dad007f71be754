"""The pictures that are stored with a run; matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BARS = 40
PROPOSED = ("TPE", "random", "without ")  # trials without a name of their own
COLORS = {"weights": "#c2610c", "activations": "#2563b0"}  # as in the report


def plot_effect(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The layers that change the outputs most when they alone are quantized, worst on top.

    Args:
        rows: Content of effect.json, worst first: layer, effect_on, sqnr_db.
        path: PNG to write.
    """
    shown = list(rows[:MOST_BARS])
    names = [_short(row["layer"]) + ("" if row["sqnr_db"] is None else f" ({row['sqnr_db']:.0f} dB)") for row in shown]
    figure, axes = _bars([100 * row["effect_on"] for row in shown], names, COLORS["weights"])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("relative error of the outputs with this layer alone quantized, % (in brackets: its noise)")
    axes.set_title("Effect on the output per layer", fontsize=11, loc="left")
    figure.savefig(path, dpi=110)


def plot_noise(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The layers with the most quantization noise, worst on top.

    Args:
        rows: Content of noise.json, worst first: layer, kind, sqnr_db.
        path: PNG to write.
    """
    from matplotlib.patches import Patch

    shown = list(rows[:MOST_BARS])
    names, colors = [_short(row["layer"]) for row in shown], [COLORS[row["kind"]] for row in shown]
    figure, axes = _bars([row["sqnr_db"] for row in shown], names, colors)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("signal to quantization noise, dB (less is noisier)")
    count = f"the {len(shown)} noisiest of {len(rows)}" if len(rows) > len(shown) else f"all {len(rows)}"
    axes.set_title(f"Quantization noise per layer input: {count}", fontsize=11, loc="left")
    kinds = dict.fromkeys(row["kind"] for row in shown)
    handles = [Patch(color=COLORS[kind], label=kind) for kind in kinds]
    axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def plot_accuracy_budget(rows: Sequence[dict[str, Any]], metric: str, path: Path, *, share: bool) -> None:
    """Drop and layers in floating point of every model that was tried.

    Args:
        rows: Content of trace.json: iteration, drop, limit, reverted_layers, accepted.
        metric: The one whose drop it is.
        path: PNG to write.
        share: Whether the metric is a share, whose drop is shown in points.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    factor = 100 if share else 1
    for accepted, color, label in ((True, COLORS["activations"], "taken"), (False, COLORS["weights"], "not taken")):
        known = [row for row in rows if row["accepted"] == accepted]
        drops = [row for row in known if row["drop"] is not None]
        above.scatter([row["iteration"] for row in drops], [factor * row["drop"] for row in drops], color=color, label=label, zorder=3)
        below.scatter([row["iteration"] for row in known], [row["reverted_layers"] for row in known], color=color, zorder=3)
    above.axhline(factor * rows[0]["limit"], color="#666666", linestyle="--", linewidth=1, label="allowed")
    above.set_ylabel(f"{metric} drops by" + (", points" if share else ""))
    above.legend(frameon=False, fontsize=9)
    below.set_ylabel("layers in floating point")
    below.set_xlabel("model that was tried")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def plot_accuracy_speed(rows: Sequence[dict[str, Any]], metric: str, path: Path, *, share: bool) -> None:
    """The primary metric of each model over its latency.

    Args:
        rows: Content of accuracy_speed.json: model, latency_ms, accuracy.
        metric: Name of the primary metric.
        path: PNG to write.
        share: Whether the metric is a share, which is shown in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        place = row["latency_ms"], (100 if share else 1) * row["accuracy"]
        axes.scatter(*place, s=70, zorder=3)
        axes.annotate(row["model"], place, xytext=(7, 7), textcoords="offset points", fontsize=9)
    axes.margins(0.25)
    axes.set_xlim(0, 1.3 * max(row["latency_ms"] for row in rows))  # the labels stand to the right of the points
    axes.set_xlabel("latency, ms (one inference at a time)")
    axes.set_ylabel(f"{metric}, %" if share else metric)
    axes.set_title("Accuracy against speed", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def plot_trade_off(rows: Sequence[dict[str, Any]], metric: str, path: Path, *, share: bool) -> None:
    """The primary metric of every trial of a search over its speed-up; the frontier is joined, what is given is named.

    Args:
        rows: Content of trade_off.json: model, speed_up, accuracy, kind (trial, frontier, reference).
        metric: Name of the primary metric.
        path: PNG to write.
        share: Whether the metric is a share, which is shown in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    factor = 100 if share else 1
    colors = {"trial": "#9aa5b1", "frontier": "#b3264b", "reference": "#2563b0"}
    for row in rows:
        axes.scatter(row["speed_up"], factor * row["accuracy"], s=30, color=colors[row["kind"]], zorder=3)
        if row["kind"] == "reference" or not row["model"].startswith(PROPOSED):
            place = row["speed_up"], factor * row["accuracy"]
            axes.annotate(row["model"], place, xytext=(6, 6), textcoords="offset points", fontsize=8)
    frontier = sorted((row["speed_up"], factor * row["accuracy"]) for row in rows if row["kind"] == "frontier")
    axes.plot(*zip(*frontier, strict=True), color=colors["frontier"], linewidth=1, label="frontier: nothing is both faster and better")
    axes.set_xlabel("times faster than FP32 in its default precision")
    axes.set_ylabel(f"{metric}, %" if share else metric)
    axes.set_title("Trials of the search, accuracy against speed", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def plot_best_so_far(trials: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]], path: Path) -> None:
    """Speed-up and loss of every trial, and of the best one so far.

    Args:
        trials: Content of trials.json.
        best: Content of best_so_far.json.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, key, label in ((upper, "speed_up", "times faster than FP32"), (lower, "loss", "objective (less is better)")):
        shown = [row for row in trials if key == "loss" or row["speed_up_low"] is not None or row["within_budget"]]
        for inside, color, name in ((True, "#0b7a6f", "within the budget"), (False, "#c2610c", "beyond the budget")):
            places = [(row["trial"], row[key]) for row in shown if row["within_budget"] is inside]
            axes.scatter([x for x, _ in places], [y for _, y in places], s=16, color=color, label=name)
        known = [row for row in best if row[key] is not None]
        axes.step([row["trial"] for row in known], [row[key] for row in known], where="post", color="#1b2430", label="best so far")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    upper.legend(frameon=False, fontsize=9)
    upper.set_title("Best of the trials so far", fontsize=11)
    lower.set_xlabel("trial")
    figure.savefig(path, dpi=110)


def plot_importance(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The parameters of the search space that its objective depends on most.

    Args:
        rows: Content of importance.json, the most important first: parameter, importance, best_choice.
        path: PNG to write.
    """
    names = [f"{_short(row['parameter'])} → {row['best_choice']}" for row in rows]
    figure, axes = _bars([100 * row["importance"] for row in rows], names, "#b3264b")
    axes.set_xlabel("share of the objective's variance over trials that the choice explains, %")
    axes.set_title("What matters most, and the choice that does best", fontsize=11, loc="left")
    figure.savefig(path, dpi=110)


def _bars(lengths: Sequence[float], names: Sequence[str], color: str | Sequence[str]) -> tuple[Any, Any]:
    """A figure of horizontal bars, the first one on top, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.22 * len(lengths)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(lengths)), lengths, color=color, height=0.7)
    axes.set_yticks(range(len(lengths)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _short(name: str, length: int = 48) -> str:
    """Long names keep their end, where layers differ."""
    return name if len(name) <= length else "…" + name[1 - length :]
