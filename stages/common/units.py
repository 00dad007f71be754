"""How measured numbers read: percent and points, times and factors, each written the same way wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_NAMES = 4


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def metric_value(metric: Mapping[str, Any], value: float) -> str:
    """A metric's value: a share in percent, anything else as the number it is."""
    return f"{100 * value:.2f} %" if metric["share"] else f"{value:.4g}"


def difference(metric: Mapping[str, Any], value: float) -> str:
    """A difference of two values of a metric without its unit: of shares in points, i.e. hundredths."""
    # Adding zero makes minus zero a zero.
    return f"{100 * value + 0.0:.2f}" if metric["share"] else f"{value + 0.0:.4g}"


def amount(metric: Mapping[str, Any], value: float) -> str:
    """A difference of two values of a metric: of shares `2.10 points`."""
    return difference(metric, value) + (" points" if metric["share"] else "")


def drop(metric: Mapping[str, Any], numbers: Mapping[str, Any], key: str = "drop") -> str:
    """`0.40 points [-0.20, 1.00]`: a drop with its interval, where it has one; numbers: `key`, with `_low` and `_high` behind it."""
    text = amount(metric, numbers[key])
    if numbers[f"{key}_low"] is None:
        return text
    return f"{text} [{difference(metric, numbers[f'{key}_low'])}, {difference(metric, numbers[f'{key}_high'])}]"


def ratio(spread: Mapping[str, float], name: str) -> str:
    """How much faster something is than `name`, with what four rounds in five measured, or that there is no difference."""
    if spread["low"] <= 1.0 <= spread["high"]:
        return f"no different from {name}"
    faster = spread["median"] >= 1.0
    low, high = (spread["low"], spread["high"]) if faster else (1 / spread["high"], 1 / spread["low"])
    middle = spread["median"] if faster else 1 / spread["median"]
    return f"{middle:.2f}x {'faster' if faster else 'SLOWER'} than {name} [{low:.2f}, {high:.2f}]"


def model_names(precisions: Mapping[str, str]) -> dict[str, str]:
    """What the measured models are called, in the order of tables; without `default` where that is f32."""
    names = {"fp32": "FP32 (f32)", "default": f"FP32 ({precisions['default']}, default)", "int8": "INT8"}
    if precisions["default"] == "f32":
        del names["default"]
    return names


def logged(metric: Mapping[str, Any], name: str, numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """Numbers of a metric by key, as they are logged where no unit is shown beside them: of a share in percent, its differences in points.

    What differs comes first in their names: `drop_points.accuracy`, `value_percent.accuracy`; of anything but a share `drop.error`.
    """
    found = {}
    for key, value in numbers.items():
        words = key.split("_")
        unit = "percent" if "relative" in words else "points" if {"drop", "limit"} & {*words} else "percent"
        shared = metric["share"] and value is not None
        found[f"{key}_{unit}.{name}" if metric["share"] else f"{key}.{name}"] = 100 * value if shared and value is not None else value
    return found


def some(names: Sequence[str]) -> str:
    """The first names of a list, with an ellipsis for the others."""
    return ", ".join([*names[:MOST_NAMES], *(["..."] if len(names) > MOST_NAMES else [])])


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
