"""The search space of TunableQuantization: what each layer may choose, and the plan that a choice makes (as POT 2023.3).

Every quantity is a parameter of its own: whether a layer is quantized, and the bits, mode, granularity and range estimator of
its activations and its weights. Their products are never listed. A parameter that only means something after another one's
choice, such as `outlier_prob` of a border that is no quantile, is only asked for then; what a choice implies follows it,
such as the default estimator, which differs between modes. What the target cannot run is not offered.

Layers that share a quantizer, or quantizers that share a range, choose together: a `Unit`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.placement.plan import Border, Estimator, Float, Plan, Quantizer, plan_to_json
from stages.quantization.planning import PlanOptions
from stages.quantization.statistics.estimators import (
    DEFAULT_OUTLIER_PROB,
    LARGEST_SQNR,
    LEAST_ERROR,
    POOLED_TYPES,
    QUANTILE_TYPES,
    SHARE_TYPES,
    can_pool,
    default_estimator,
)
from stages.search.tuning.layer_units import Unit, make_base, make_units, selected_units

QUANTIZED, FLOAT = "quantized", "float"
SCHEME_KEYS = ("bits", "mode", "granularity")
SWITCHED_OFF = "left in floating point by the search"
CUSTOM = "base"  # an estimator that is no preset's

Proposal = dict[str, str]  # parameter -> choice
Options = dict[tuple[str, ...], dict[str, Quantizer]]  # values of the scheme keys in scope -> by quantizer name, the quantizer with them


class SpaceParameter(NamedTuple):
    """One parameter of the space: what is asked of whom."""

    unit: Unit
    kind: str | None  # weights or activations; None: the whole layer
    key: str  # e.g. mode, estimator.max.type
    given: str = ""  # earlier choices that decide what may be chosen here

    @property
    def name(self) -> str:
        """The parameter's name, e.g. `conv1.activations.mode`."""
        return ".".join(part for part in (self.unit.name, self.kind, self.key) if part) + (f"[{self.given}]" if self.given else "")


Answer = Callable[[SpaceParameter, tuple[str, ...], str], str]  # question, choices, the base's choice -> choice


class Space:
    """The choices of every layer around a base.

    Args:
        offer: The plan of the base's preset and the schemes that the target can run; its order of quantizers is that of the space.
        scope: What may be chosen.
        order: Names of the model's operations in the order in which they run: units are named and listed in it.
        best: An earlier plan to start from instead of the preset's (fine_tune). What it leaves in floating point may be switched on.

    Raises:
        ConfigError: `include` or `exclude` names no layer.
        UserError: the scope leaves nothing to choose.
    """

    def __init__(self, offer: PlanOptions, scope: schema.TuneSpace, order: Iterable[str], best: Plan | None = None) -> None:
        self.offer = offer
        self.scope = scope
        self.units = make_units(offer.plan, {name: place for place, name in enumerate(order)})
        self.base = make_base(self.units, offer, best)
        tuned = selected_units(self.units, scope)
        self._tuned = {unit.name for unit in tuned}
        self._scheme_keys = tuple(key for key in SCHEME_KEYS if key in scope.tuning_scope)
        self._options = {(unit, kind): self._scheme_options(unit, kind) for unit in tuned for kind in (ACTIVATIONS, WEIGHTS)}
        if not any(True for _ in self.parameters()):
            chosen = ", ".join(scope.tuning_scope) or "nothing"
            raise UserError(
                f"tune.space.tuning_scope: there is nothing to tune: on {len(tuned)} layers of the model, {chosen} can only be as in the"
                " base; add layer, mode or range_estimator (with estimator_tuning_scope), or a target_device with more schemes"
            )

    # ------------------------------------------------------------------------------------------------ proposals and plans

    def ask(self, answer: Answer) -> Proposal:
        """Ask every parameter that means something after the choices before it; a proposal holds exactly those."""
        proposal: Proposal = {}

        def noted(question: SpaceParameter, choices: tuple[str, ...], default: str) -> str:
            proposal[question.name] = answer(question, choices, default)
            return proposal[question.name]

        for unit in self.units:
            self._chosen(unit, noted)
        return proposal

    def plan(self, proposal: Mapping[str, str]) -> Plan:
        """The plan that a proposal means; parameters that it does not name stay as in the base."""
        chosen: dict[str, Quantizer] = {}
        for unit in self.units:
            chosen |= self._chosen(unit, lambda question, _, default: proposal.get(question.name, default)) or {}
        quantizers = tuple(chosen[quantizer.name] for quantizer in self.offer.plan.quantizers if quantizer.name in chosen)
        dropped = [quantizer for quantizer in self.offer.plan.quantizers if quantizer.name not in chosen]
        inputs = dict.fromkeys((place.name, place.type, place.port) for quantizer in dropped for place in quantizer.layers)
        return replace(
            self.offer.plan,
            quantizers=quantizers,
            floats=self.offer.plan.floats + tuple(Float(*where, SWITCHED_OFF) for where in inputs),
        )

    def base_proposal(self) -> Proposal:
        """The base itself."""
        return self.ask(lambda _, __, default: default)

    def proposal(self, plan: Plan) -> tuple[Proposal, bool]:
        """What comes nearest to a plan, and whether it means exactly that plan's quantizers."""
        given = {quantizer.name: quantizer for quantizer in plan.quantizers}

        def answer(question: SpaceParameter, choices: tuple[str, ...], default: str) -> str:
            names = question.unit.quantizers(question.kind) if question.kind else question.unit.activations + question.unit.weights
            if question.key == "quantize":
                return QUANTIZED if all(name in given for name in names) else FLOAT
            found = next((given[name] for name in names if name in given), None)
            value = None if found is None else _value_of(found, question.key)
            return value if value in choices else default

        proposal = self.ask(answer)
        return proposal, set(self.plan(proposal).quantizers) == set(plan.quantizers)

    def without(self, units: Iterable[str]) -> Proposal:
        """The base with some units in floating point, as far as they may be switched off."""
        off = set(units)
        return self.ask(lambda question, _, default: FLOAT if question.key == "quantize" and question.unit.name in off else default)

    def share_quantized(self, plan: Plan) -> float:
        """The share of the quantizable layers that a plan quantizes (with all that it takes)."""
        present = {quantizer.name for quantizer in plan.quantizers}
        on = [unit for unit in self.units if present.issuperset(unit.activations + unit.weights)]
        return sum(len(unit.layers) for unit in on) / sum(len(unit.layers) for unit in self.units)

    # ------------------------------------------------------------------------------------------------ description

    def parameters(self) -> Iterator[tuple[SpaceParameter, tuple[str, ...], str]]:
        """Every parameter with its choices and the base's choice, those of one unit after the other."""
        for unit in self.units:
            seen: dict[str, tuple[SpaceParameter, tuple[str, ...], str]] = {}
            leaves: list[dict[tuple[str, str], str]] = [{}]
            leaves += [
                {(kind, key): value for key, value in zip(self._scheme_keys, values, strict=True)}
                for kind in (ACTIVATIONS, WEIGHTS)
                for values in self._options.get((unit, kind), {})
            ]
            for leaf in leaves:

                def answer(question: SpaceParameter, choices: tuple[str, ...], default: str, leaf: dict = leaf, seen: dict = seen) -> str:
                    if question.name not in seen:
                        seen[question.name] = question, choices, default
                    if question.key == "quantize":
                        return QUANTIZED
                    if question.key.endswith(".type"):
                        return "quantile"  # what is asked of quantiles only shows then
                    return str(leaf.get((question.kind, question.key), default))

                self._chosen(unit, answer)
            yield from seen.values()

    def describe(self) -> list[str]:
        """The space in lines: what is fixed, and every unit with its parameters; the base's choice first."""
        by_unit: dict[Unit, list[tuple[SpaceParameter, tuple[str, ...], str]]] = {}
        for entry in self.parameters():
            by_unit.setdefault(entry[0].unit, []).append(entry)
        count = sum(map(len, by_unit.values()))
        lines = [f"{count} parameters of {len(by_unit)} units, {len(self.units) - len(by_unit)} units stay as in the base"]
        for unit, entries in by_unit.items():
            others = f" (with {', '.join(unit.layers[1:])})" if len(unit.layers) > 1 else ""
            lines.append(f"{unit.name}{others}")
            for question, choices, default in entries:
                key = question.name.removeprefix(f"{unit.name}.")
                lines.append(f"    {key}: {', '.join([default, *(choice for choice in choices if choice != default)])}")
        return lines

    @property
    def key(self) -> str:
        """Identity of the space: parameters, choices, and the quantizers that they mean."""
        parameters = [(question.name, choices, default) for question, choices, default in self.parameters()]
        options = [plan_to_json(Plan(quantizers, ())) for quantizers in self.offer.schemes.values()]
        base = [plan_to_json(Plan(tuple(self.base.quantizers.values()), ())), sorted(self.base.off)]
        text = json.dumps([parameters, options, base, plan_to_json(self.offer.plan)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    # ------------------------------------------------------------------------------------------------ one unit

    def _chosen(self, unit: Unit, answer: Answer) -> dict[str, Quantizer] | None:
        """The unit's quantizers as `answer` chooses; None: floating point."""
        off = unit.name in self.base.off
        if unit.name in self._tuned and "layer" in self.scope.tuning_scope:
            off = answer(SpaceParameter(unit, None, "quantize"), (QUANTIZED, FLOAT), FLOAT if off else QUANTIZED) == FLOAT
        if off:
            return None
        chosen = {name: self.base.quantizers[name] for name in unit.activations + unit.weights}
        if unit.name in self._tuned:
            for kind in (ACTIVATIONS, WEIGHTS):
                if unit.quantizers(kind):
                    chosen |= self._with_estimators(unit, kind, self._choose_schemes(unit, kind, answer), answer)
        return chosen

    def _choose_schemes(self, unit: Unit, kind: str, answer: Answer) -> dict[str, Quantizer]:
        """One key after the other, among what is left after the earlier ones."""
        options = self._options[unit, kind]
        left = list(options)
        given: list[str] = []
        for place, key in enumerate(self._scheme_keys):
            values = tuple(dict.fromkeys(option[place] for option in left))
            if len(values) > 1:
                everywhere = {option[place] for option in options}
                question = SpaceParameter(unit, kind, key, "" if set(values) == everywhere else ",".join(given))
                value = answer(question, values, values[0])
                given.append(value)
                left = [option for option in left if option[place] == value]
        return options[left[0]]

    def _scheme_options(self, unit: Unit, kind: str) -> Options:
        """What all quantizers of the unit can be, that differs from the base in the scope's keys only; the base comes first."""
        names = unit.quantizers(kind)
        if not names:
            return {}
        options: list[dict[tuple[str, ...], Quantizer]] = []
        for name in names:
            base = self.base.quantizers[name]
            found = {self._values(base): base}
            for other in self.offer.schemes[name]:
                if all(getattr(other.scheme, key) == getattr(base.scheme, key) for key in SCHEME_KEYS if key not in self._scheme_keys):
                    # The estimator of the base stays where it fits; else it follows the mode and the granularity.
                    found.setdefault(self._values(other), replace(other, estimator=_followed(base, other)))
            options.append(found)
        first = self._values(self.base.quantizers[names[0]])
        shared = [values for values in options[0] if all(values in found for found in options)]
        if first not in shared:
            # Quantizers of the unit differ in the base already: they stay as they are.
            return {first: {name: self.base.quantizers[name] for name in names}}
        return {values: {name: found[values] for name, found in zip(names, options, strict=True)} for values in shared}

    def _values(self, quantizer: Quantizer) -> tuple[str, ...]:
        return tuple(str(getattr(quantizer.scheme, key)) for key in self._scheme_keys)

    # ------------------------------------------------------------------------------------------------ estimators

    def _with_estimators(self, unit: Unit, kind: str, quantizers: dict[str, Quantizer], answer: Answer) -> dict[str, Quantizer]:
        """The quantizers with the estimators that are chosen for them."""
        if "range_estimator" not in self.scope.tuning_scope:
            return quantizers
        scope = self.scope.estimator_tuning_scope
        result = dict(quantizers)
        if "preset" in scope and "type" not in scope:  # types are all that the presets differ in
            preset = _preset(next(iter(result.values())))
            scheme = next(iter(result.values())).scheme
            # Of presets that mean the same for this scheme the first.
            different = {default_estimator(scheme, kind, name): name for name in reversed(schema.ESTIMATOR_PRESETS)}
            choices = tuple(dict.fromkeys([preset, *reversed(different.values())]))
            chosen = answer(SpaceParameter(unit, kind, "estimator.preset", "" if preset != CUSTOM else CUSTOM), choices, preset)
            if chosen != preset:
                result = {name: _with_estimator(entry, default_estimator(entry.scheme, kind, chosen)) for name, entry in result.items()}
        # Of a symmetric range the lower border only says whether anything is negative.
        symmetric = next(iter(result.values())).scheme.symmetric
        for side in ("max",) if symmetric else ("min", "max"):
            if "type" in scope:
                extreme = "max" if side == "max" else "min"
                now = _type_choice(_border(result, side).type, extreme)
                scheme = next(iter(result.values())).scheme
                pooled = [type for type in (LEAST_ERROR, LARGEST_SQNR) if can_pool(type, scheme, kind)]
                choices = tuple(dict.fromkeys([extreme, "quantile", *pooled, now]))
                chosen = answer(SpaceParameter(unit, kind, f"estimator.{side}.type"), choices, now)
                if chosen != now:
                    result = _refined(result, side, type=_border_type(chosen, symmetric))
            if "outlier_prob" in scope and _border(result, side).type in SHARE_TYPES:
                base = [self.base.quantizers[name].estimator for name in unit.quantizers(kind)]
                own = {getattr(entry, side).outlier_prob for entry in base} - {None}
                choices = tuple(map(str, dict.fromkeys([*self.scope.outlier_prob_choices, *sorted(own)])))
                default = str(_border(result, side).outlier_prob)
                chosen = answer(
                    SpaceParameter(unit, kind, f"estimator.{side}.outlier_prob"), choices, default if default in choices else choices[0]
                )
                result = _refined(result, side, outlier_prob=float(chosen))
            if "aggregator" in scope and kind == ACTIVATIONS and _border(result, side).type not in POOLED_TYPES:
                now = str(_border(result, side).aggregator)
                chosen = answer(SpaceParameter(unit, kind, f"estimator.{side}.aggregator"), schema.AGGREGATORS, now)
                if chosen != now:
                    result = _refined(result, side, aggregator=chosen)
        return result


def _value_of(quantizer: Quantizer, key: str) -> str | None:
    """A quantizer's own choice for a parameter."""
    if key in SCHEME_KEYS:
        return str(getattr(quantizer.scheme, key))
    if key == "estimator.preset":
        return _preset(quantizer)
    _, side, what = key.split(".")
    border: Border = getattr(quantizer.estimator, side)
    if what == "type":
        return _type_choice(border.type, side)
    return str(getattr(border, what))


def _preset(quantizer: Quantizer) -> str:
    """The estimator preset that a quantizer's estimator is."""
    return next(
        (
            preset
            for preset in schema.ESTIMATOR_PRESETS
            if quantizer.estimator == default_estimator(quantizer.scheme, quantizer.kind, preset)
        ),
        CUSTOM,
    )


def _followed(base: Quantizer, other: Quantizer) -> Estimator:
    same = (base.scheme.mode, base.scheme.granularity) == (other.scheme.mode, other.scheme.granularity)
    return base.estimator if same else other.estimator


def _with_estimator(quantizer: Quantizer, estimator: Estimator) -> Quantizer:
    return replace(quantizer, estimator=estimator, choice=None)


def _border(quantizers: Mapping[str, Quantizer], side: str) -> Border:
    return getattr(next(iter(quantizers.values())).estimator, side)


def _type_choice(type: str, extreme: str) -> str:
    """The choice that a border's type is."""
    return type if type in POOLED_TYPES else "quantile" if type in QUANTILE_TYPES else extreme


def _border_type(choice: str, symmetric: bool) -> str:
    """Symmetric ranges are estimated from absolute values; what looks at all samples knows that by itself."""
    return f"abs_{choice}" if symmetric and choice not in POOLED_TYPES else choice


def _refined(quantizers: Mapping[str, Quantizer], side: str, **values: Any) -> dict[str, Quantizer]:
    """The quantizers with some keys of one border replaced; a new quantile gets a probability, what looks at
    all samples together loses its aggregator, and the other way round.
    """
    result = {}
    for name, quantizer in quantizers.items():
        border: Border = replace(getattr(quantizer.estimator, side), **values)
        probability = (border.outlier_prob or DEFAULT_OUTLIER_PROB) if border.type in SHARE_TYPES else None
        usual: Border = getattr(default_estimator(quantizer.scheme, quantizer.kind), side)
        aggregator = None if border.type in POOLED_TYPES else border.aggregator or usual.aggregator
        border = replace(border, outlier_prob=probability, aggregator=aggregator)
        result[name] = _with_estimator(quantizer, replace(quantizer.estimator, **{side: border}))
    return result
