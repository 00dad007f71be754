"""Whether the FP32 model's values are worth comparing with: what a model that knows nothing reaches is no baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.runtime.metrics import Metric

ADVICE = (
    "a drop from there says nothing about quantization; do labels (class numbers start at 0), preprocessing (size, colour order, scale, "
    "mean) and the metric's arguments fit the model?"
)


def warnings(
    values: Mapping[str, Mapping[str, NDArray[np.float64]]], metrics: Mapping[str, Metric], targets: Iterable[Hashable], confidence: float
) -> list[str]:
    """One line per metric of which the FP32 model's value could be that of a model that knows nothing.

    Args:
        values: Model -> metric -> per-sample rows.
        metrics: By name.
        targets: What tells the samples' targets apart, e.g. their hashes; None for unlabelled samples.
        confidence: Probability with which chance is to be excluded.
    """
    shares = frequencies(targets)
    found = []
    for name, metric in metrics.items():
        # A reference is the FP32 model itself. Lower is better: 0 is perfect, and chance has no limit.
        if metric.uses_reference or not metric.higher_is_better:
            continue
        rows = values["fp32"][name]
        value = metric.value(rows)
        if metric.finds_nothing(rows) and not _is_best(value, [metric.value(other[name]) for other in values.values()]):
            found.append(f"{name} of FP32 is {_shown(value)}, that of a model that finds nothing: {ADVICE}")
            continue
        chance = metric.chance(shares)
        if chance is not None and lower_limit(value, len(rows), confidence) <= chance:
            found.append(
                f"{name} of FP32 is {_shown(value)}, which {len(rows)} samples cannot tell from the {_shown(chance)} of guessing or of "
                f"the most frequent answer: {ADVICE}"
            )
    return found


def frequencies(targets: Iterable[Hashable]) -> list[float]:
    """How often each target occurs as a share of all, the most frequent first; empty for samples without targets."""
    counts = Counter(target for target in targets if target is not None)
    return [count / counts.total() for _, count in counts.most_common()]


def lower_limit(share: float, count: int, confidence: float) -> float:
    """The lower end of the interval of a share of `count` samples (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


def _is_best(value: float, values: Iterable[float]) -> bool:
    """Whether zero is the most that there is, as of a negative error, rather than the least."""
    return value == 0.0 and min(values) < 0.0


def _shown(value: float) -> str:
    return f"{100 * value:.2f} %" if 0.0 <= value <= 1.0 else f"{value:.4g}"
