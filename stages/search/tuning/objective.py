"""What makes one configuration better than another: loss of accuracy, speed, and the share of layers that are quantized.

`pot_loss` is the formula of POT 2023.3; `Budget` says what a loss of accuracy is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.runtime.metrics import Metric
from stages.search.acceptance import Criterion

BEYOND_BUDGET = 80.0
TOO_SLOW = 40.0
# Where the fully quantized model is neither faster nor slower there is no scale for speed: this speed-up takes its place.
SMALLEST_SPEED_UP = 1.01
# Where it loses nothing and no loss is allowed, there is no scale for accuracy: this loss takes its place.
SMALLEST_LOSS = 0.01
# An error may become thousands of times what it was; the formula's exponential would not be finite any more.
LARGEST_LOSS = 100.0


@dataclass(frozen=True)
class Score:
    """What is known of a configuration.

    Attributes:
        accuracy_loss: Relative loss of the worst metric, 0.01 is one percent; negative where the model is better.
        speed_up: How many times faster than the reference.
        quantized: Share of the layers that are quantized, 0 to 1.
    """

    accuracy_loss: float
    speed_up: float
    quantized: float


@dataclass(frozen=True)
class Target:
    """What is asked for, in the units of `Score`, and what counts how much.

    Attributes:
        accuracy_loss: The budget.
        speed_up: What the model should reach at least.
        accuracy_weight: Of the loss beyond the budget; within the budget accuracy does not count.
        latency_weight: Of the speed-up.
        quantized_weight: Of the quantized share.
        expected_quantized: Share of layers above which quantization is rewarded; above 0 and below 1.
    """

    accuracy_loss: float = 0.01
    speed_up: float = 1.0
    accuracy_weight: float = 1.0
    latency_weight: float = 1.0
    quantized_weight: float = 0.0
    expected_quantized: float = 0.5

    def within_budget(self, score: Score) -> bool:
        """Whether the accuracy is kept."""
        return score.accuracy_loss <= self.accuracy_loss

    def met(self, score: Score) -> bool:
        """Whether accuracy and speed are what is asked for."""
        return self.within_budget(score) and score.speed_up >= self.speed_up


def pot_loss(score: Score, full: Score, target: Target) -> float:
    """POT's loss; the lower, the better.

    Accuracy counts as exp(loss), speed as 8 ln(1 / (1000 speed-up)), each scaled so that between FP32 and the fully
    quantized model lie 10 units.

    Args:
        score: Of the configuration.
        full: Of the fully quantized model, which makes the scales.
        target: Thresholds and weights.
    """
    beyond = not target.within_budget(score)
    weight = target.accuracy_weight if beyond else 0.0
    if not (weight or target.latency_weight or target.quantized_weight):
        weight = 1.0
    width = math.exp(min(full.accuracy_loss or target.accuracy_loss or SMALLEST_LOSS, LARGEST_LOSS)) - 1.0
    accuracy = 10.0 / abs(width) * (math.exp(min(score.accuracy_loss, LARGEST_LOSS)) - 1.0)
    fastest = next(speed for speed in (full.speed_up, target.speed_up, SMALLEST_SPEED_UP) if speed != 1.0)
    slowness = 10.0 / abs(_slowness(1.0) - _slowness(fastest)) * (_slowness(score.speed_up) - _slowness(fastest))
    offset = target.expected_quantized
    reward = 5.0 * math.tanh(3.0 * (score.quantized - offset) / min(offset, 1.0 - offset))
    loss = weight * accuracy + target.latency_weight * slowness - target.quantized_weight * reward
    return loss + (BEYOND_BUDGET if beyond else TOO_SLOW if score.speed_up < target.speed_up else 0.0)


def _slowness(speed_up: float) -> float:
    return 8.0 * math.log(1.0 / (1000.0 * speed_up))


# ------------------------------------------------------------------------------------------------ loss of accuracy


@dataclass(frozen=True)
class Budget:
    """The metrics that must keep the budget, and what their losses are counted from.

    Attributes:
        metrics: By name.
        fp32: By metric, the rows of the FP32 model in f32 [N, k] at the positions that are evaluated, in that order.
        baseline: By metric, the value of which a loss is a share.
        given: The metrics whose baseline is a number of the user's.
    """

    metrics: dict[str, Metric]
    fp32: dict[str, NDArray[np.float64]]
    baseline: dict[str, float]
    given: frozenset[str] = frozenset()

    def losses(self, rows: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
        """Relative loss of each metric, from the rows [n, k] of the first n positions.

        Paired with FP32: what is lost on these samples is what is expected to be lost on all of them.
        """
        return {name: self.metric_loss(name, rows[name], slice(0, len(rows[name]))) for name in self.metrics}

    def criteria(self, allowed: float) -> dict[str, Criterion]:
        """The budget as what a model chosen among many is accepted by. allowed: the relative loss."""
        return {
            name: Criterion(
                metric, None if name in self.given else self.fp32[name], self.baseline[name], allowed * abs(self.baseline[name])
            )
            for name, metric in self.metrics.items()
        }

    def metric_loss(self, name: str, rows: NDArray[np.float64], seen: slice | NDArray[np.intp]) -> float:
        """The relative loss of one metric, from the rows of the positions `seen`."""
        metric, fp32, baseline = self.metrics[name], self.fp32[name], self.baseline[name]
        sign = 1.0 if metric.higher_is_better else -1.0
        expected = metric.value(fp32) + metric.value(rows) - metric.value(fp32[seen])
        return sign * (baseline - expected) / abs(baseline)


def make_budget(metrics: Mapping[str, Metric], fp32: Mapping[str, NDArray[np.float64]], given: Mapping[str, float | None]) -> Budget:
    """The budget over the metrics in `given`, by name with their baseline values; None: FP32's own value.

    Raises:
        UserError: a baseline is zero, of which nothing is a share.
    """
    baseline: dict[str, float] = {}
    for name, value in given.items():
        baseline[name] = metrics[name].value(fp32[name]) if value is None else value
        if value == 0:
            raise UserError(f"tune.metrics: baseline_value of {name}: 0 is not allowed; expected a number of which a loss can be a share")
        if not baseline[name]:
            raise UserError(
                f"metric {name} is 0 for the FP32 model, and there is no relative loss of that:"
                f" give tune.metrics: [{{name: {name}, baseline_value: ...}}] a value, or choose another metric"
            )
    fixed = frozenset(name for name, value in given.items() if value is not None)
    return Budget({name: metrics[name] for name in given}, {name: fp32[name] for name in given}, baseline, fixed)
