"""Units of the search space: layers that share quantizers or ranges, and therefore choose together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stages.common.errors import ConfigError
from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.placement.plan import Plan, Quantizer
from stages.quantization.planning import PlanOptions


@dataclass(frozen=True)
class Unit:
    """Layers that choose together, and their quantizers."""

    name: str  # the first layer's
    layers: tuple[str, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]

    def quantizers(self, kind: str) -> tuple[str, ...]:
        """Names of the quantizers of one kind."""
        return self.activations if kind == ACTIVATIONS else self.weights


@dataclass(frozen=True)
class Base:
    """What options are compared with: a preset's plan, or an earlier best one."""

    quantizers: dict[str, Quantizer]  # of every unit, also of those that are switched off
    off: frozenset[str]  # units


def make_units(plan: Plan, order: Mapping[str, int]) -> tuple[Unit, ...]:
    """Layers and quantizers that hang together, in the order in which the first layers run."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for quantizer in plan.quantizers:
        tied = [*_layers(quantizer), *([f"group {quantizer.unified_group}"] if quantizer.unified_group is not None else [])]
        for name in tied:
            parent[root(name)] = root(tied[0])
    members: dict[str, list[Quantizer]] = {}
    for quantizer in plan.quantizers:
        members.setdefault(root(_layers(quantizer)[0]), []).append(quantizer)
    units = []
    for quantizers in members.values():
        layers = sorted({name for quantizer in quantizers for name in _layers(quantizer)}, key=lambda name: order.get(name, len(order)))
        kinds = [tuple(entry.name for entry in quantizers if entry.kind == kind) for kind in (ACTIVATIONS, WEIGHTS)]
        units.append(Unit(layers[0], tuple(layers), *kinds))
    return tuple(sorted(units, key=lambda unit: order.get(unit.name, len(order))))


def _layers(quantizer: Quantizer) -> list[str]:
    """The operations that a quantizer serves; where it only joins others in a Concat, what reads it."""
    return [place.name for place in quantizer.layers or quantizer.consumers]


def make_base(units: Sequence[Unit], offer: PlanOptions, best: Plan | None) -> Base:
    quantizers = {quantizer.name: quantizer for quantizer in offer.plan.quantizers}
    if best is None:
        return Base(quantizers, frozenset())
    # Of an earlier plan, for another device maybe, only what the target can run now.
    kept = {
        quantizer.name: replace(same, estimator=quantizer.estimator)
        for quantizer in best.quantizers
        for same in offer.schemes.get(quantizer.name, ())
        if same.scheme == quantizer.scheme
    }
    off = {unit.name for unit in units if not kept.keys() >= {*unit.activations, *unit.weights}}
    return Base(quantizers | kept, frozenset(off))


def selected_units(units: Sequence[Unit], scope: schema.TuneSpace) -> list[Unit]:
    """The units that are tuned: those of `include` (all, where it is empty) without those of `exclude`."""
    included = {unit for entry in scope.include for unit in _named(units, entry, "include")}
    excluded = {unit for entry in scope.exclude for unit in _named(units, entry, "exclude")}
    return [unit for unit in units if (unit in included or not scope.include) and unit not in excluded]


def _named(units: Sequence[Unit], entry: str, key: str) -> list[Unit]:
    if entry.startswith("re:"):
        expression = re.compile(entry.removeprefix("re:"))
        found = [unit for unit in units if any(expression.fullmatch(name) for name in unit.layers)]
    else:
        found = [unit for unit in units if entry in unit.layers]
    if not found:
        names = [name for unit in units for name in unit.layers]
        near = difflib.get_close_matches(entry.removeprefix("re:"), names, n=3, cutoff=0.3)
        raise ConfigError(f"tune.space.{key}: {entry!r} names no quantized layer; nearest names: {', '.join(near) or 'none'}")
    return found
