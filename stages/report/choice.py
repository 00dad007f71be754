"""Which of several quantized models to deploy: the rule, and what it is decided by. Measured facts in, a choice and its reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.units import amount, difference

Ratio = Mapping[str, float]  # median, low, high: of a speed-up

SAME_SPEED = 0.05  # speed-ups whose ranges overlap and whose medians differ by less count as one: accuracy then decides
RULE_OF_THREE = 3.0  # of n samples without any difference, differences in up to 3/n of all are no surprise (95 %)


@dataclass(frozen=True)
class Loss:
    """What a metric lost beside what it may lose.

    Attributes:
        name: Of the metric.
        metric: As evaluation.json has it.
        allowed: Drop within the budget, in the metric's own unit; None where no budget means anything: of a distance to FP32's outputs.
        samples: On how many it was measured.
    """

    name: str
    metric: Mapping[str, Any]
    allowed: float | None
    samples: int

    @property
    def drop(self) -> float:
        return float(self.metric["drop"])

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval of the drop. One of no width says how few samples there are: of a share it is widened by the rule of three."""
        low, high = self.metric["drop_low"], self.metric["drop_high"]
        if low is None:
            return None
        if low == high and self.metric["share"]:
            reach = min(1.0, RULE_OF_THREE / self.samples)
            return low - reach, high + reach
        return low, high

    @property
    def within(self) -> bool:
        """Whether the drop is within the budget."""
        return self.allowed is None or self.drop <= self.allowed

    @property
    def clear(self) -> bool:
        """Whether the metric is worse beyond doubt: zero is below the interval."""
        return self.drop > 0 if self.bounds is None else self.bounds[0] > 0

    @property
    def acceptable(self) -> bool:
        """Within the budget, or not clearly different from zero."""
        return self.within or not self.clear

    @property
    def undecided(self) -> bool:
        """Whether the samples cannot tell if the budget is kept, because the interval is wider than the budget."""
        if self.bounds is None or not self.allowed:
            return False
        low, high = self.bounds
        return low <= self.allowed < high and high - low > self.allowed

    @property
    def samples_needed(self) -> int:
        """So many samples give an interval as wide as the budget: widths shrink with the root. Two digits, rounded up."""
        if self.bounds is None or not self.allowed:
            return self.samples
        low, high = self.bounds
        if self.metric["drop_low"] == self.metric["drop_high"]:
            count = 2 * RULE_OF_THREE / self.allowed
        else:
            count = self.samples * ((high - low) / self.allowed) ** 2
        step = 10.0 ** max(0, math.floor(math.log10(count)) - 1)
        return int(math.ceil(count / step - 1e-9) * step)

    def shown(self) -> str:
        """`exact_match drops by 3.10 points [1.70, 4.50]`; where less is better, `error rises by`; where it is not clear, so."""
        low, high = self.metric["drop_low"], self.metric["drop_high"]
        verb, noun = ("drops", "drop") if self.metric["higher_is_better"] else ("rises", "rise")
        interval = "" if low is None else f" [{difference(self.metric, low)}, {difference(self.metric, high)}]"
        if self.clear:
            return f"{self.name} {verb} by {amount(self.metric, self.drop)}{interval}"
        if high is not None and high < 0:
            gained = f" [{difference(self.metric, -high)}, {difference(self.metric, -low)}]"
            return f"{self.name} is better by {amount(self.metric, -self.drop)}{gained}"
        return f"no clear {noun} of {self.name}: {amount(self.metric, self.drop)}{interval}"


@dataclass(frozen=True)
class Candidate:
    """A model that may be deployed.

    Attributes:
        name: What it is called, e.g. `1 preset=mixed`.
        losses: Of the metrics that have a budget, the primary one first.
        ratio: How many times faster than FP32 in the device's default precision; None where that was not measured.
        faulty: Whether the device computes something else than the model says.
        kept: Whether the budget of the search that has made it holds: its word counts, on its samples; None of what no search has made.
        final: The same ratio, measured in the same rounds as that of the other finalists; None of what is none. It ranks them.
    """

    name: str
    losses: tuple[Loss, ...]
    ratio: Ratio | None
    faulty: bool = False
    kept: bool | None = None
    final: Ratio | None = None

    @property
    def rank(self) -> Ratio | None:
        """The ratio by which it is compared with others."""
        return self.final or self.ratio

    @property
    def acceptable(self) -> bool:
        kept = all(loss.acceptable for loss in self.losses) if self.kept is None else self.kept
        return kept and not self.faulty

    @property
    def faster(self) -> bool:
        """Whether it is faster than FP32 beyond doubt; where nothing was measured, by belief."""
        return self.ratio is None or self.ratio["low"] > 1.0

    @property
    def excess(self) -> float:
        """By how many budgets the worst metric is worse than allowed."""
        return max((loss.drop / loss.allowed if loss.allowed else loss.drop for loss in self.losses), default=0.0)


def losses(
    metrics: Mapping[str, Mapping[str, Any]], samples: int, budget: Mapping[str, Any], primary: str | None = None
) -> tuple[Loss, ...]:
    """The metrics that a budget is for: those that it names, else all.

    A distance to FP32's own outputs, which is zero for FP32 and needs no labels, is judged by no budget that nobody has set.

    Args:
        metrics: As evaluation.json has them.
        samples: On how many they were measured.
        budget: `maximal_drop`, `drop_type` and `metrics`, as in the section `accuracy_aware` of the configuration.
        primary: The metric that comes first; None: as they come.
    """
    named = {entry["name"]: entry for entry in budget["metrics"]}
    found = []
    for name, metric in metrics.items():
        if named and name not in named:
            continue
        limit = named.get(name, {}).get("maximal_drop")
        limit = budget["maximal_drop"] if limit is None else limit
        distance = not metric["higher_is_better"] and metric["fp32"] == 0.0
        scale = abs(metric["fp32"]) if budget["drop_type"] == "relative" else 1.0
        found.append(Loss(name, metric, None if distance and not named else limit * scale, samples))
    return tuple(sorted(found, key=lambda loss: loss.name != primary))


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The model to deploy: the largest speed-up against FP32 in the default precision among those that lose nothing that matters.

    Nothing that matters: every drop is within the budget, or not clearly different from zero. Of models that are equally fast as far as
    could be measured, the one that loses least.

    Args:
        candidates: The first ones win where there is no difference.
    """
    kept = [each for each in candidates if each.acceptable]
    kept = [each for each in kept if each.final is not None] or kept
    if not kept:
        return None
    fastest = max(kept, key=lambda each: each.rank["median"] if each.rank else 0.0)
    return min((each for each in kept if equally_fast(each, fastest)), key=lambda each: each.excess)


def equally_fast(one: Candidate, other: Candidate) -> bool:
    """Whether there is no telling which one is faster."""
    if one is other or one.rank is None or other.rank is None:
        return one.rank is other.rank
    close = abs(one.rank["median"] / other.rank["median"] - 1) < SAME_SPEED
    return close and one.rank["low"] <= other.rank["high"] and other.rank["low"] <= one.rank["high"]
