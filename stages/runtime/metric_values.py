"""What a metric gives, checked: metrics may be a user's own."""

from __future__ import annotations

import numpy as np

from stages.common.errors import UserError
from stages.common.user_code import user_code
from stages.runtime.metrics import Metric


def metric_value(key: str, metric: Metric, rows: np.ndarray, model: str = "") -> float:
    """A metric's value over samples. UserError when it is no number, or not a finite one; `model` names the model in it."""
    with user_code(f"metric {key}: value of {type(metric).__name__}"):
        result = metric.value(rows)
    value = numbers(result)
    if value is None or value.ndim:
        raise UserError(f"metric {key}: value gives {shown(result)}, but must give a number")
    if not np.isfinite(value):
        raise UserError(f"metric {key} is not a finite number{f' for the {model} model' if model else ''}: {value}")
    return float(value)


def check_scores(key: str, metric: Metric, rows: np.ndarray) -> None:
    """UserError when a metric does not score each sample."""
    with user_code(f"metric {key}: score of {type(metric).__name__}"):
        result = metric.score(rows)
    scores = numbers(result)
    if scores is None or scores.shape != (len(rows),):
        raise UserError(f"metric {key}: score gives {shown(result)} for {len(rows)} samples, but must give a number for each")


def numbers(value: object) -> np.ndarray | None:
    """Real numbers as an array; None for anything else, text that reads like a number included."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array.astype(np.float64) if array.dtype.kind in "biuf" else None


def shown(value: object) -> str:
    """What came in place of numbers, cut to a readable length."""
    if value is None:
        return "nothing (None)"
    if hasattr(value, "shape"):
        return f"an array of shape {list(value.shape)}"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
