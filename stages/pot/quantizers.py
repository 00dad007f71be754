"""POT's parameters of quantizers, which several algorithms share: schemes, range estimators, and what is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.configuration.validation import LOWER_TYPES, POOLED_TYPES, QUANTILE_TYPES, UPPER_TYPES
from stages.pot.result import UNKNOWN, Translation, refusal, section_of

SCHEME_KEYS = ("bits", "mode", "granularity", "level_low", "level_high")
ESTIMATOR_KEYS = ("type", "outlier_prob", "clipping_value", "aggregator")


def translate_schemes(result: Translation, params: Mapping[str, Any], place: str) -> None:
    forced = False
    for group in ("weights", "activations"):
        key, target = f"{place}.{group}", f"quantization.{group}"
        scheme = section_of(result, params.get(group), key)
        levels = [scheme.get(name) is not None for name in ("level_low", "level_high")]
        for name, value in scheme.items():
            if name == "range_estimator":
                continue
            if name not in SCHEME_KEYS:
                result.leave(f"{key}.{name}", value, UNKNOWN)
            elif name.startswith("level_") and not all(levels):
                result.leave(f"{key}.{name}", value, "level_low and level_high are given together")
            else:
                result.put(f"{key}.{name}", value, f"{target}.{name}")
                forced = True
        if scheme.get("range_estimator") is not None:
            mode = scheme.get("mode")
            estimator = _estimator(result, scheme["range_estimator"], f"{key}.range_estimator", weights=group == "weights", mode=mode)
            result.put(f"{key}.range_estimator", estimator, f"{target}.range_estimator")
    if params.get("range_estimator") is not None:
        estimator = _estimator(result, params["range_estimator"], f"{place}.range_estimator", weights=False, mode=None)
        result.put(f"{place}.range_estimator", estimator, "quantization.range_estimator")
    if forced:
        # POT used such settings also where the device's table has none like them.
        result.values["quantization.allow_unsupported"] = True


def _estimator(result: Translation, given: Any, key: str, *, weights: bool, mode: Any) -> dict[str, Any]:
    """A range estimator without what does nothing or is not known here."""
    section = section_of(result, given, key)
    preset = section.get("preset", "default")
    estimator: dict[str, Any] = {"preset": preset} if "preset" in section else {}
    for name, value in section.items():
        if name not in ("preset", "min", "max"):
            result.leave(f"{key}.{name}", value, UNKNOWN)
    for border, ours in (("min", LOWER_TYPES), ("max", UPPER_TYPES)):
        types = tuple(name for name in ours if name not in POOLED_TYPES)  # POT's
        entry = section_of(result, section.get(border), f"{key}.{border}")
        kept: dict[str, Any] = {}
        for name, value in entry.items():
            if problem := _estimator_problem(name, value, entry, border, types, preset, weights=weights, mode=mode):
                result.leave(f"{key}.{border}.{name}", value, problem)
            else:
                kept[name] = value
        if kept:
            estimator[border] = kept
    return estimator


def _estimator_problem(
    name: str, value: Any, entry: Mapping[str, Any], border: str, types: tuple[str, ...], preset: Any, *, weights: bool, mode: Any
) -> str | None:
    """Why a key of one border of an estimator is not carried over."""
    quantile = entry.get("type") in QUANTILE_TYPES or (entry.get("type") is None and preset == "quantile")
    if name == "granularity":
        return "a range is estimated with the granularity that it has"
    if name not in ESTIMATOR_KEYS:
        return UNKNOWN
    if weights and border == "min" and mode == "symmetric":
        return "symmetric weights have only a max"
    if weights and name == "aggregator":
        return "there are no samples of weights to aggregate"
    if name == "type" and value not in types:
        return f"the types of {border} are {', '.join(types)}"
    if name == "type" and value in QUANTILE_TYPES and entry.get("outlier_prob") is None and preset != "quantile":
        return "a quantile needs outlier_prob"
    if name == "outlier_prob" and not quantile:
        return "only quantiles have it"
    return refusal(f"quantization.range_estimator.{border}.{name}", value)


def translate_ignored(result: Translation, given: Any, key: str) -> None:
    ignored = section_of(result, given, key)
    scope = []
    for index, name in enumerate(ignored.get("scope") or []):
        if isinstance(name, str):
            scope.append(name)
        else:
            result.leave(f"{key}.scope[{index}]", name, "operations inside If and Loop are not quantized anyway")
    operations = ignored.get("operations") or []
    if scope:
        result.put(f"{key}.scope", scope, "quantization.ignored.scope")
    if operations:
        result.put(f"{key}.operations", operations, "quantization.ignored.operations")
    if ignored.get("skip_model"):
        result.leave(f"{key}.skip_model", True, "a model that is not quantized needs no pipeline")
    for name, value in ignored.items():
        if name not in ("scope", "operations", "skip_model"):
            result.leave(f"{key}.{name}", value, "cascades: one model at a time" if isinstance(value, dict) else UNKNOWN)
