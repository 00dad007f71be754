"""Preset auto: mode and estimator of every quantizer of activations by the error that is to be expected, from the statistics alone.

The error is that of rounding and clipping by the quantizer alone, as the mean over the samples of its power in decibels (`sample_error`).
Quantizers begin as in preset performance, and become what else the target can run in their place only where that gains enough: an
estimated error is no measured one, and what makes no difference may as well stay as it is. Weights stay symmetric: of 8-bit weights per
channel nothing gains more than tenths of a decibel, and with zero points CPUs run them more slowly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from stages.configuration.target_device import ACTIVATIONS, Scheme
from stages.quantization.model.graph import Graph
from stages.quantization.placement.plan import Plan, Quantizer
from stages.quantization.solution.alignment import align
from stages.quantization.solution.least_error import read_tail
from stages.quantization.solution.pooled import body_of, tails_of
from stages.quantization.solution.ranges import Range
from stages.quantization.solution.sample_error import mean_error, range_error
from stages.quantization.solution.smoothing import smooth
from stages.quantization.solution.solve import activation_range, unified_ranges
from stages.quantization.statistics.estimators import LARGEST_SQNR, can_pool, default_estimator
from stages.quantization.statistics.store import Statistics

LEAST_GAIN_OF_ESTIMATOR = 1.0  # dB, for ranges by SQNR in place of those of the samples' extremes
LEAST_GAIN_OF_MODE = 0.5  # dB, for what is not the first scheme in the target's order


class Option(NamedTuple):
    """What the quantizers of a group, all in one scheme, may be.

    Attributes:
        members: The quantizers.
        error: The mean of their expected errors in dB.
        remark: About their estimator.
    """

    members: tuple[Quantizer, ...]
    error: float
    remark: str | None

    @property
    def scheme(self) -> Scheme:
        """That of all members."""
        return self.members[0].scheme


def choose_activations(
    graph: Graph, statistics: Statistics, plan: Plan, schemes: Mapping[str, Sequence[Quantizer]], *, estimators: bool
) -> Plan:
    """The plan with the quantizers of activations chosen by their expected error.

    Args:
        graph: Of the floating-point model.
        statistics: Of the calibration samples.
        plan: What to begin with.
        schemes: By quantizer name, the quantizer in each scheme that the target can run in its place, fastest first.
        estimators: Choose these too; else the quantizers' own are used.
    """
    aligned = align(graph, statistics, plan)
    factors, _, statistics = smooth(graph, aligned.statistics, plan, aligned.weights)
    groups: dict[tuple[int, str], list[Quantizer]] = {}
    for quantizer in plan.quantizers:
        if quantizer.kind == ACTIVATIONS:
            unified = quantizer.unified_group
            groups.setdefault((-1, quantizer.name) if unified is None else (unified, ""), []).append(quantizer)
    chosen: dict[str, Quantizer] = {}
    for members in groups.values():
        # Of smoothed tensors only the extremes of features are known.
        free = estimators and not any(member.source in factors for member in members)
        options = [_with_estimator(same, statistics, plan.stat_batch_size, estimators=free) for same in _by_scheme(members, schemes)]
        best, remarks = _best(options)
        chosen.update((member.name, replace(member, choice="; ".join(remarks) or None)) for member in best.members)
    return replace(plan, quantizers=tuple(chosen.get(quantizer.name, quantizer) for quantizer in plan.quantizers))


def _best(options: Sequence[Option]) -> tuple[Option, list[str]]:
    """The first option, or the one with the least error where that gains enough, and why."""
    first, *others = options
    best, words = min(others, key=lambda option: option.error, default=first), []
    if best is not first:
        gain = first.error - best.error
        usual, other = _difference(first.scheme, best.scheme)
        if gain >= LEAST_GAIN_OF_MODE:
            words.append(f"{other}: {gain:.1f} dB less error than {usual}")
        else:
            words.append(f"{usual}: {other} would gain {max(gain, 0.0):.1f} dB only")
            best = first
    return best, [*words, best.remark] if best.remark is not None else words


def _by_scheme(members: Sequence[Quantizer], schemes: Mapping[str, Sequence[Quantizer]]) -> list[list[Quantizer]]:
    """The members of a group in each scheme, all in the same, that has no fewer bits than the first one."""
    offered = [entry.scheme for entry in schemes[members[0].name]]
    made = [
        [other for member in members for other in schemes[member.name] if other.scheme == scheme]
        for scheme in offered
        if scheme.bits >= offered[0].bits
    ]
    return [same for same in made if len(same) == len(members)]


def _difference(first: Scheme, other: Scheme) -> tuple[str, str]:
    """In a word each, in what two schemes differ."""
    if first.mode != other.mode:
        return first.mode, other.mode
    if first.granularity != other.granularity:
        return first.granularity, other.granularity
    return f"{first.bits} bits", f"{other.bits} bits"


def _with_estimator(members: Sequence[Quantizer], statistics: Statistics, batch_size: int, *, estimators: bool) -> Option:
    """The members, of one scheme, with the better one of the estimators."""
    usual = Option(tuple(members), _error(members, statistics, batch_size), None)
    if not estimators or not can_pool(LARGEST_SQNR, members[0].scheme, ACTIVATIONS):
        return usual
    other = tuple(replace(member, estimator=default_estimator(member.scheme, ACTIVATIONS, LARGEST_SQNR)) for member in members)
    error = _error(other, statistics, batch_size)
    gain = usual.error - error
    if gain < LEAST_GAIN_OF_ESTIMATOR:
        return usual
    return Option(other, error, f"range by SQNR: {gain:.1f} dB less error than by the samples' extremes")


def _error(members: Sequence[Quantizer], statistics: Statistics, batch_size: int) -> float:
    """The mean of the expected errors in dB."""
    ranges = {member.name: activation_range(member, statistics, batch_size, False) for member in members}
    ranges |= unified_ranges(members, ranges, False)
    return float(np.mean([expected_error(member, ranges[member.name], statistics) for member in members]))


def expected_error(quantizer: Quantizer, borders: Range, statistics: Statistics) -> float:
    """The mean over the samples of the power in dB of the error that a quantizer of activations makes."""
    levels = quantizer.scheme.levels(ACTIVATIONS)
    if quantizer.source in statistics.channel_lowest and np.ndim(borders.high):
        return _error_of_channels(quantizer, borders, statistics, levels)
    lowest, highest, size = tails_of(quantizer, statistics)
    tails = read_tail(highest, size), read_tail(-lowest, size)
    upper, lower = float(np.max(borders.high)), float(np.max(-borders.low))
    return range_error(upper, lower, tails, body_of(quantizer, statistics), levels)


def _error_of_channels(quantizer: Quantizer, borders: Range, statistics: Statistics, levels: int) -> float:
    """The same where each channel has a range: of what lies inside only the step between two levels is known."""
    tensor = quantizer.source
    size = statistics.channel_size[tensor]
    samples = np.flatnonzero(size)
    lowest, highest = statistics.channel_lowest[tensor][samples], statistics.channel_highest[tensor][samples]
    high, low = (np.asarray(border, np.float64)[:, None] for border in (borders.high, borders.low))
    excess = np.nansum(np.maximum(highest - high, 0.0) ** 2 + np.maximum(low - lowest, 0.0) ** 2, axis=(1, 2))
    rounding = float(np.mean(((high - low) / (levels - 1)) ** 2) / 12)
    return float(mean_error(excess[:, None], size[samples] * high.shape[0], np.array([rounding]))[0])
