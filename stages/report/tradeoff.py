"""The picture of accuracy against speed: where points, ticks and labels go, in percent of the picture.

Percent across and pixels down, so that a browser can make the picture as wide as the screen without scaling its text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HEIGHT = 320.0  # pixels
LABEL = 36.0  # pixels that a label of two lines needs; it hangs below its height
SHORT = 17.0  # and one of a single number, beside its point
MOST_LABELS = 8  # more models have short labels, and a key below the picture
FEWEST_TICKS = 4


@dataclass(frozen=True)
class Point:
    """A measured model. The borders of its error bars may be missing."""

    name: str
    kind: str  # fp32, default, int8, accuracy_aware, tune, frontier or trial: decides the colour
    x: float  # milliseconds
    y: float  # the metric, shares in percent
    value: str  # both, as text
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    short: str = ""  # a number that stands for the name where there is no room for it; empty: its place in the list, from A


@dataclass(frozen=True)
class GridLine:
    """A line of the grid with its label."""

    place: float
    label: str


@dataclass(frozen=True)
class PlottedPoint:
    """A point in its place, with its error bars and its label."""

    point: Point
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    label_y: float
    before: bool  # whether the label stands to the left of the point
    short: str = ""  # what stands for the label where there is no room for it
    short_y: float = 0.0


@dataclass(frozen=True)
class Picture:
    """What the page draws. `trials` are further points without labels; `frontier` those than which none is faster and better."""

    marks: tuple[PlottedPoint, ...]
    trials: tuple[PlottedPoint, ...]
    frontier: tuple[PlottedPoint, ...]
    x_ticks: tuple[GridLine, ...]
    y_ticks: tuple[GridLine, ...]
    reference: float  # height of FP32's accuracy
    metric: str
    unit: str
    higher_is_better: bool
    crowded: bool = False  # whether there are too many marks for labels
    height: float = HEIGHT


def picture(points: Sequence[Point], trials: Sequence[Point], metric: str, unit: str, *, higher_is_better: bool) -> Picture:
    """Places the points: fast is left, accurate is up, whatever the metric's direction.

    Args:
        points: The models, FP32 first.
        trials: Models that a search tried.
        metric: Name of the metric.
        unit: `%`, or empty.
        higher_is_better: The metric's direction.
    """
    everything = [*points, *trials]
    searched = bool(trials) or any(point.kind == "tune" for point in points)
    xs = [value for point in everything for value in (point.x, *(point.x_range or ()))]
    ys = [value for point in points for value in (point.y, *(point.y_range or ()))] + [trial.y for trial in trials]
    x_ticks = ticks(0.0, 1.08 * max(xs))
    y_ticks = ticks(min(ys), max(ys))
    left, right = x_ticks[0], x_ticks[-1]
    low, high = y_ticks[0], y_ticks[-1]

    def across(value: float) -> float:
        return round(100 * (value - left) / (right - left), 3)

    height = max(HEIGHT, SHORT * len(points))

    def down(value: float) -> float:
        share = (value - low) / (high - low)
        return round(height * (1 - share if higher_is_better else share), 2)

    def mark(point: Point, label_y: float = 0.0, short: str = "", short_y: float = 0.0) -> PlottedPoint:
        x_low, x_high = point.x_range or (point.x, point.x)
        y_ends = sorted(down(value) for value in point.y_range or (point.y, point.y))
        x = across(point.x)
        return PlottedPoint(point, x, down(point.y), across(x_low), across(x_high), y_ends[0], y_ends[1], label_y, x > 60, short, short_y)

    places = [down(point.y) for point in points]
    names = [point.short or chr(ord("A") + place) for place, point in enumerate(points)]
    return Picture(
        marks=tuple(map(mark, points, apart(places), names, beside(places, height))),
        trials=tuple(mark(trial) for trial in trials),
        frontier=tuple(mark(trial) for trial in _frontier(everything if searched else [], higher_is_better=higher_is_better)),
        x_ticks=tuple(GridLine(across(value), text) for value, text in zip(x_ticks, labels(x_ticks), strict=True)),
        y_ticks=tuple(GridLine(down(value), text) for value, text in zip(y_ticks, labels(y_ticks), strict=True)),
        reference=down(points[0].y),
        metric=metric,
        unit=unit,
        higher_is_better=higher_is_better,
        crowded=len(points) > MOST_LABELS,
        height=height,
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers at even distances that enclose low..high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / FEWEST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * max(factor for factor in (1, 2, 5) if factor * power <= rough * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def apart(heights: Sequence[float], distance: float = LABEL, total: float = HEIGHT) -> list[float]:
    """Heights of labels near those of their points, at least `distance` apart and inside the picture: [pixels] -> [pixels].

    Args:
        heights: Of the points.
        distance: That a label needs.
        total: Height of the picture.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: dict[int, float] = {}
    lowest = 0.0
    for index in order:
        placed[index] = max(lowest, heights[index])
        lowest = placed[index] + distance
    highest = total - distance
    for index in reversed(order):
        placed[index] = min(highest, placed[index])
        highest = placed[index] - distance
    return [round(placed[index], 2) for index in range(len(heights))]


def beside(heights: Sequence[float], total: float = HEIGHT) -> list[float]:
    """Heights of short labels, whose middle is at the height of their points where there is room."""
    return [round(place + SHORT / 2, 2) for place in apart([height - SHORT / 2 for height in heights], SHORT, total)]


def _frontier(points: Sequence[Point], *, higher_is_better: bool) -> Iterator[Point]:
    """The points than which no other is both faster and more accurate, the fastest first."""
    sign = 1.0 if higher_is_better else -1.0
    best = -math.inf
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if sign * point.y > best:
            best = sign * point.y
            yield point


def labels(values: Sequence[float]) -> Iterator[str]:
    """Texts of numbers, all with as many decimals as the one that needs most."""
    decimals = max(len(f"{value:.10g}".partition(".")[2]) for value in values)
    return (f"{value:.{decimals}f}" for value in values)
