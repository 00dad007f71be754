"""POT's reference runs, and ours on the same models and samples."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml

from stages.configuration import schema
from stages.configuration.target_device import Target, read_target
from stages.quantization.build import build
from stages.quantization.model.graph import Graph, bias_add, bias_constant_port, constant_value, read_graph
from stages.quantization.model.weights import bias_values
from stages.quantization.placement.plan import Plan, Quantizer, TensorName
from stages.quantization.planning import make_plan
from stages.quantization.solution.solve import Solved
from stages.quantization.statistics import store as stored
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points

FOLDER = Path(__file__).parent / "reference"
CONF = Path(__file__).parents[2] / "conf"


@functools.cache
def target(name: str = "any") -> Target:
    """The tables of conf/target_device/<name>.yaml."""
    return read_target(schema.TargetDevice(**composed(name)))


def composed(name: str) -> dict[str, Any]:
    """The file with the files of its defaults list under it, as Hydra merges them."""
    own = yaml.safe_load((CONF / "target_device" / f"{name}.yaml").read_text())
    merged: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if base != "_self_":
            merged = composed(base)
    for key, value in own.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


@functools.cache
def core() -> ov.Core:
    """One core for all tests."""
    return ov.Core()


@functools.cache
def model(name: str) -> tuple[ov.Model, Graph]:
    """A reference model and its graph."""
    read = core().read_model(FOLDER / f"{name}.xml")
    return read, read_graph(read)


@functools.cache
def statistics(
    name: str, samples: int, device: str = "any", probabilities: tuple[float, ...] = (1e-4, 1e-3), every_channel: bool = False
) -> stored.Statistics:
    """Statistics of the first samples, by plain synchronous f32 inference."""
    read, graph = model(name)
    with np.load(FOLDER / f"{name}.npz") as archive:
        data = archive["x"][:samples]

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        compiled = core().compile_model(instrumented, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for sample in data:
            yield list(compiled([sample[None]]).values())

    return collect(
        read, statistics_points(graph, target(device), every_channel, pot_compatible=True), probabilities, probabilities, infer, samples
    )


@dataclass(frozen=True)
class Run:
    """A reference run and ours beside it."""

    reference: dict[str, Any]
    graph: Graph
    plan: Plan
    solved: Solved

    def matches(self) -> list[tuple[dict[str, Any], Quantizer]]:
        """POT's quantizers with ours, found by consumers or else by source. AssertionError when one has no counterpart."""
        by_consumer = {(place.name, place.port): quantizer for quantizer in self.plan.quantizers for place in quantizer.consumers}
        by_source = {quantizer.source: quantizer for quantizer in self.plan.quantizers}
        pairs = []
        for entry in self.reference["quantizers"]:
            found = {
                quantizer.name: quantizer
                for place in entry["consumers"]
                if (quantizer := by_consumer.get((place["name"], place["port"]))) is not None
            }
            if len(found) != 1:
                # POT gives convolutions without a bias an Add of zeros, which is then the source.
                source = by_source.get(TensorName(entry["source"].removesuffix("/add_"), entry["source_port"]))
                assert source is not None, f"POT quantizes {entry['source']} for {entry['consumers']}, we do not"
                found = {source.name: source}
            pairs.append((entry, next(iter(found.values()))))
        return pairs

    def bias(self, operation: str) -> np.ndarray:
        """Our bias of an operation; zeros where it has none."""
        bias = self.solved.biases.get(operation)
        if bias is None:
            bias = bias_values(self.graph.by_name[operation])
        if bias is None and (add := bias_add(self.graph.by_name[operation])) is not None:
            # Not one value per channel, such as a position embedding: POT calls it a bias all the same.
            return constant_value(add.inputs[bias_constant_port(add)].node)
        return np.zeros(1) if bias is None else bias


def algorithm(name: str) -> str:
    """What POT ran: default, minmax, aca (channel alignment alone) or bc (with the accurate bias correction)."""
    return str(json.loads((FOLDER / f"{name}.json").read_text())["algorithm"])


@functools.cache
def run(name: str, pot_compatible: bool = True) -> Run:
    """Repeat a reference run under POT's own rules, or with what this project does better."""
    reference = json.loads((FOLDER / f"{name}.json").read_text())
    config, device = configuration(reference)
    config.pot_compatible = pot_compatible
    read, graph = model(reference["model"])
    plan = make_plan(graph, target(device), config)
    correction = schema.BiasCorrection() if reference["algorithm"] == "default" else None
    _, solved = build(read, statistics(reference["model"], reference["samples"], device), plan, correction, pot_compatible)
    return Run(reference, graph, plan, solved)


def configuration(reference: dict[str, Any]) -> tuple[schema.Quantization, str]:
    """Our configuration and device for POT's parameters."""
    given = dict(reference["params"])
    config = schema.Quantization(
        preset=given["preset"], pot_compatible=True, use_channel_alignment=reference["algorithm"] != "minmax", use_smooth_quant=False
    )
    config.model_type = given.get("model_type", "none")
    config.saturation_fix = given.get("saturation_fix", "first_layer")
    for operation in given.get("ignored", {}).get("operations", []):
        config.ignored.operations.append(schema.IgnoredOperation(operation["type"]))
    if "range_estimator" in given:
        config.range_estimator = _range_estimator(given["range_estimator"])
    for group in ("weights", "activations"):
        section = dict(given.get(group, {}))
        if "range_estimator" in section:
            section["range_estimator"] = _range_estimator(section["range_estimator"])
        setattr(config, group, schema.Scheme(**section))
    config.allow_unsupported = "bits" in given.get("weights", {})
    return config, given["target_device"].lower()


def _range_estimator(given: dict[str, Any]) -> schema.RangeEstimator:
    borders = {border: schema.Estimator(**given[border]) for border in ("min", "max") if border in given}
    return schema.RangeEstimator(preset=given.get("preset", "default"), **borders)
