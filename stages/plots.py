"""The pictures that are stored with a run; matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BARS = 40
COLORS = {"weights": "#c2610c", "activations": "#2563b0"}  # as in the report


def plot_noise(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The layers with the most quantization noise, worst on top.

    Args:
        rows: Content of noise.json, worst first: layer, kind, sqnr_db.
        path: PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = list(rows[:MOST_BARS])
    figure = Figure(figsize=(9, 1.4 + 0.22 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(shown)), [row["sqnr_db"] for row in shown], color=[COLORS[row["kind"]] for row in shown], height=0.7)
    axes.set_yticks(range(len(shown)), [_short(row["layer"]) for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("signal to quantization noise, dB (less is noisier)")
    count = f"the {len(shown)} noisiest of {len(rows)}" if len(rows) > len(shown) else f"all {len(rows)}"
    axes.set_title(f"Quantization noise per layer input: {count}", fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    kinds = dict.fromkeys(row["kind"] for row in shown)
    handles = [Patch(color=COLORS[kind], label=kind) for kind in kinds]
    axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9)
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


def _short(name: str, length: int = 48) -> str:
    """Long names keep their end, where layers differ."""
    return name if len(name) <= length else "…" + name[1 - length :]
