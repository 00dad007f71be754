"""What the pictures of a run show: the numbers in them, in the units of their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from stages.tracking import plots

PATH = Path("never written")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: figures.append(figure))
    return figures


def points(axes: Any) -> list[tuple[float, float]]:
    """What is scattered."""
    return sorted((float(place[0]), float(place[1])) for places in axes.collections for place in np.asarray(places.get_offsets()))


@pytest.mark.parametrize(("share", "factor"), [(True, 100.0), (False, 1.0)])
def test_drops_and_their_limit_are_in_the_same_unit(drawn: list[Figure], share: bool, factor: float) -> None:
    steps: list[tuple[float | None, bool]] = [(0.08, True), (None, False), (0.02, True)]
    rows = [
        {"iteration": number, "drop": drop, "limit": 0.03, "reverted_layers": 2 * number, "accepted": accepted}
        for number, (drop, accepted) in enumerate(steps)
    ]
    plots.plot_accuracy_budget(rows, "accuracy", PATH, share=share)
    above, below = drawn[0].axes
    assert points(above) == pytest.approx(np.array([(0.0, 0.08 * factor), (2.0, 0.02 * factor)]))
    (limit,) = above.lines
    assert limit.get_ydata() == pytest.approx([0.03 * factor] * 2)
    assert points(below) == [(0.0, 0.0), (1.0, 2.0), (2.0, 4.0)]
    assert above.get_ylabel() == ("accuracy drops by, points" if share else "accuracy drops by")


@pytest.mark.parametrize(("share", "factor"), [(True, 100.0), (False, 1.0)])
def test_accuracy_over_latency(drawn: list[Figure], share: bool, factor: float) -> None:
    rows = [{"model": "fp32", "latency_ms": 4.0, "accuracy": 0.9}, {"model": "int8", "latency_ms": 2.0, "accuracy": 0.88}]
    plots.plot_accuracy_speed(rows, "accuracy", PATH, share=share)
    (axes,) = drawn[0].axes
    assert points(axes) == pytest.approx(np.array([(2.0, 0.88 * factor), (4.0, 0.9 * factor)]))
    assert {text.get_text() for text in axes.texts} == {"fp32", "int8"}


@pytest.mark.parametrize(("share", "factor"), [(True, 100.0), (False, 1.0)])
def test_the_frontier_is_joined_and_what_was_proposed_is_not_named(drawn: list[Figure], share: bool, factor: float) -> None:
    kinds = [
        ("TPE", 1.2, 0.8, "trial"),
        ("all quantized", 2.0, 0.7, "frontier"),
        ("without 3", 1.5, 0.9, "frontier"),
        ("fp32", 1.0, 0.95, "reference"),
    ]
    rows = [dict(zip(("model", "speed_up", "accuracy", "kind"), entry, strict=True)) for entry in kinds]
    plots.plot_trade_off(rows, "accuracy", PATH, share=share)
    (axes,) = drawn[0].axes
    assert points(axes) == pytest.approx(np.array(sorted((speed, factor * value) for _, speed, value, _ in kinds)))
    (frontier,) = axes.lines
    assert np.asarray(frontier.get_xydata()) == pytest.approx(np.array([(1.5, 0.9 * factor), (2.0, 0.7 * factor)]))
    assert {text.get_text() for text in axes.texts} == {"all quantized", "fp32"}


def test_the_best_so_far_is_a_step_behind_no_trial(drawn: list[Figure]) -> None:
    trials: list[dict[str, Any]] = [
        {"trial": 1, "speed_up": 1.5, "speed_up_low": 1.4, "loss": 90.0, "within_budget": False},
        {"trial": 2, "speed_up": 1.2, "speed_up_low": 1.1, "loss": 8.0, "within_budget": True},
        {"trial": 3, "speed_up": 1.0, "speed_up_low": None, "loss": 95.0, "within_budget": False},  # given up: not timed
    ]
    best: list[dict[str, Any]] = [
        {"trial": 1, "speed_up": None, "loss": 90.0},
        *({"trial": number, "speed_up": 1.2, "loss": 8.0} for number in (2, 3)),
    ]
    plots.plot_best_so_far(trials, best, PATH)
    upper, lower = drawn[0].axes
    assert points(upper) == [(1.0, 1.5), (2.0, 1.2)]
    assert points(lower) == [(1.0, 90.0), (2.0, 8.0), (3.0, 95.0)]
    assert [np.asarray(axes.lines[0].get_xydata()).tolist() for axes in (upper, lower)] == [
        [[2.0, 1.2], [3.0, 1.2]],
        [[1.0, 90.0], [2.0, 8.0], [3.0, 8.0]],
    ]


def _widths(axes: Any) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def test_bars_are_as_long_as_their_numbers(drawn: list[Figure]) -> None:
    layers = [{"layer": f"{'long ' * 20}{number}", "kind": "weights", "sqnr_db": 10.0 + number} for number in range(50)]
    plots.plot_noise(layers, PATH)
    plots.plot_importance([{"parameter": "conv.mode", "importance": 0.25, "best_choice": "symmetric"}], PATH)
    noise, importance = (figure.axes[0] for figure in drawn)
    assert _widths(noise) == [10.0 + number for number in range(40)]
    assert noise.get_title("left") == "Quantization noise per layer input: the 40 noisiest of 50"
    label = noise.get_yticklabels()[0].get_text()
    assert len(label) == 48 and label.startswith("…") and label.endswith(" 0")
    assert _widths(importance) == [25.0]
