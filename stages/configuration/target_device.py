"""What a target device can run: alternatives per operation, their intersection, and the choice that a preset makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stages.common.errors import ConfigError
from stages.configuration import schema

WEIGHTS, ACTIVATIONS = "weights", "activations"


@dataclass(frozen=True)
class Scheme:
    """How one tensor is quantized."""

    bits: int = 8
    mode: str = "symmetric"
    granularity: str = "pertensor"
    level_low: int | None = None
    level_high: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether the range is symmetric around zero (or starts at zero)."""
        return self.mode == "symmetric"

    @property
    def perchannel(self) -> bool:
        """Whether each channel has a range of its own."""
        return self.granularity == "perchannel"

    @property
    def signed(self) -> bool:
        """Whether the levels ask for a signed range even where all values are positive."""
        return self.level_low is not None and self.level_low < 0

    def levels(self, kind: str) -> int:
        """Number of quantization levels (symmetric weights leave out the lowest integer, so that zero is in the middle)."""
        half = 2 ** (self.bits - 1)
        low = self.level_low if self.level_low is not None else (1 - half if kind == WEIGHTS and self.symmetric else -half)
        high = self.level_high if self.level_high is not None else half - 1
        return abs(low) + abs(high) + 1


@dataclass(frozen=True)
class Target:
    """A device's tables, ready to ask."""

    name: str
    rules: str
    operations: dict[str, dict[str, tuple[Scheme, ...]]]  # operation kind -> weights/activations -> alternatives
    pass_through: frozenset[str]
    unified_scales: frozenset[str]

    def quantizable(self, kind: str) -> bool:
        """Whether the device quantizes the operation kind itself (rather than passing quantized data through)."""
        return any(self.operations.get(kind, {}).values()) and kind not in self.pass_through

    def alternatives(self, operation_kind: str, group: str) -> tuple[Scheme, ...]:
        """The schemes for one group (weights, activations) of an operation kind, fastest first."""
        return self.operations.get(operation_kind, {}).get(group, ())


def _expand(entry: dict[str, Any]) -> list[Scheme]:
    """One table entry as schemes: lists stand for each of their values, the first listed key varies slowest."""
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [Scheme(**dict(zip(entry, combination, strict=True))) for combination in product(*values)]


def read_target(device: schema.TargetDevice) -> Target:
    """The tables of the configured device."""
    named: dict[str, tuple[Scheme, ...]] = {}
    for name, entries in device.schemes.items():
        try:
            named[name] = tuple(scheme for entry in entries for scheme in _expand(entry))
        except TypeError as error:
            raise ConfigError(f"target_device.schemes.{name}: {error}; keys are bits, mode, granularity, level_low, level_high") from None
    operations: dict[str, dict[str, tuple[Scheme, ...]]] = {}
    for kind, groups in device.operations.items():
        for group, name in groups.items():
            if group not in (WEIGHTS, ACTIVATIONS):
                raise ConfigError(f"target_device.operations.{kind}.{group}: must be weights or activations")
            if name not in named:
                raise ConfigError(f"target_device.operations.{kind}.{group}={name}: must be one of {', '.join(named)}")
        operations[kind] = {group: named[name] for group, name in groups.items()}
    return Target(device.name, device.rules, operations, frozenset(device.pass_through), frozenset(device.unified_scales))


def restrict(alternatives: Sequence[Scheme], wanted: schema.Scheme, what: str, allow_unsupported: bool) -> tuple[Scheme, ...]:
    """The alternatives that have exactly the wanted values, or if there is none, what alternatives with them can stand in for.

    ConfigError if the target offers nothing of the kind; `what` names the place.
    """
    keys = {key: getattr(wanted, key) for key in ("bits", "mode", "granularity", "level_low", "level_high")}
    given = {key: value for key, value in keys.items() if value is not None}
    for offer in (alternatives, extend(alternatives)):
        kept = tuple(scheme for scheme in offer if all(getattr(scheme, key) == value for key, value in given.items()))
        if kept or not alternatives:
            return kept
    if allow_unsupported:
        base = [
            {**vars(scheme), **({"level_low": None, "level_high": None} if "bits" in given else {}), **given} for scheme in alternatives
        ]
        return tuple(dict.fromkeys(Scheme(**entry) for entry in base))
    offered = "; ".join(describe(scheme) for scheme in alternatives)
    asked = ", ".join(f"{key}={value}" for key, value in given.items())
    raise ConfigError(f"{what}: {asked} cannot run on the target, which offers: {offered} (quantization.allow_unsupported=true forces it)")


def describe(scheme: Scheme) -> str:
    """A scheme in words."""
    levels = f" [{scheme.level_low}, {scheme.level_high}]" if scheme.level_low is not None else ""
    return f"{scheme.bits}-bit {scheme.mode} {scheme.granularity}{levels}"


def intersect(first: Sequence[Scheme], second: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """The alternatives that both lists offer, by mode and granularity; of a pair the one with fewer bits."""
    result = []
    position = 0
    for scheme in first:
        for index in range(position, len(second)):
            other = second[index]
            if (scheme.mode, scheme.granularity) == (other.mode, other.granularity):
                result.append(other if other.bits < scheme.bits else scheme)
                position = index + 1
                break
    return tuple(result)


def extend(alternatives: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """The alternatives and what they can stand in for: per-channel offers per-tensor, asymmetric offers symmetric, or both."""

    def fallback_schemes(scheme: Scheme) -> list[Scheme]:
        modes = dict.fromkeys((scheme.mode, "symmetric"))
        granularities = dict.fromkeys((scheme.granularity, "pertensor"))
        return [
            Scheme(scheme.bits, mode, granularity, scheme.level_low, scheme.level_high) for mode in modes for granularity in granularities
        ]

    ordered = dict.fromkeys(alternatives)
    ordered.update((weak, None) for scheme in alternatives for weak in fallback_schemes(scheme))
    return tuple(sorted(ordered, key=lambda scheme: (scheme.perchannel, not scheme.symmetric)))


def common(lists: Sequence[Sequence[Scheme]]) -> tuple[Scheme, ...]:
    """The alternatives that all lists offer, fastest first; empty if there are none even after extension."""
    result = tuple(lists[0])
    for other in lists[1:]:
        result = intersect(result, other) or intersect(extend(result), extend(other))
    return result


def choose(alternatives: Sequence[Scheme], preset: str, group: str) -> Scheme:
    """The preset's choice: the first alternative, which is the fastest, or the last that has no fewer bits than the first.

    Fewer bits are for who asks for them (POT takes the last whatever its bits). Preset auto begins like performance.
    """
    accurate = preset == "accuracy" or (preset == "mixed" and group == ACTIVATIONS)
    return [scheme for scheme in alternatives if scheme.bits >= alternatives[0].bits][-1] if accurate else alternatives[0]
