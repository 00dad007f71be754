"""A candidate is a configuration of the quantized model: small, immutable, and known by a key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from stages.configuration import schema
from stages.configuration.target_device import WEIGHTS
from stages.quantization.placement.plan import Float, Plan, plan_to_json
from stages.quantization.solution.biases import Correction


@dataclass(frozen=True)
class Candidate:
    """A configuration that can be built into a model.

    Attributes:
        plan: Which tensors are quantized and how.
        bias_correction: How biases are corrected.
        corrections: Biases that were found with inference for a base configuration; they hold for layers that stay quantized. None:
            where inference is to find them, it has not been done.
        label: What to call it in messages; no part of its identity.
    """

    plan: Plan
    bias_correction: schema.BiasCorrection = field(default_factory=schema.BiasCorrection)
    corrections: tuple[Correction, ...] | None = None
    label: str = field(default="", compare=False)


def candidate_key(candidate: Candidate) -> str:
    """Hexadecimal key of what the candidate's model follows from; reasons and labels do not matter."""
    plan, corrections = plan_to_json(candidate.plan), candidate.corrections
    searched = corrections is None and candidate.bias_correction.enabled and not candidate.bias_correction.use_fast_bias
    identity = {
        "quantizers": sorted(({**entry, "choice": None} for entry in plan["quantizers"]), key=lambda entry: entry["name"]),
        "aligned": plan["aligned"],
        "smoothed": plan["smoothed"],
        "stat_batch_size": plan["stat_batch_size"],
        "bias_correction": dataclasses.asdict(candidate.bias_correction),
        "corrections": None if searched else [(entry.name, entry.bias.tolist()) for entry in corrections or () if entry.bias is not None],
    }
    return digest(identity)


def without(plan: Plan, names: Collection[str], reason: str) -> Plan:
    """`plan` without the named quantizers; the inputs of the layers that they served stay in floating point, for `reason`."""
    kept = tuple(quantizer for quantizer in plan.quantizers if quantizer.name not in names)
    places = {place for quantizer in plan.quantizers if quantizer.name in names for place in quantizer.layers}
    floats = tuple(Float(place.name, place.type, place.port, reason) for place in sorted(places))
    return dataclasses.replace(plan, quantizers=kept, floats=(*plan.floats, *floats))


def corrections_of_quantized(corrections: Collection[Correction] | None, plan: Plan, everywhere: bool = False) -> tuple[Correction, ...]:
    """Those of a base configuration's corrections that still apply: of layers whose weights `plan` quantizes.

    everywhere: keep all (bias_correction.apply_for_all_nodes).
    """
    layers = {place.name for quantizer in plan.quantizers if quantizer.kind == WEIGHTS for place in quantizer.layers}
    return tuple(entry for entry in corrections or () if everywhere or entry.name in layers)


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of plain data, shortened to 128 bits."""
    plain: Callable[[Any], Any] = dataclasses.asdict
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()[:32]
