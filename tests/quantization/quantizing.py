"""The whole way from a model to its quantized version, and what either computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration import schema
from stages.measurement.written_out import written_out
from stages.quantization.build import build, compress_weights
from stages.quantization.model.graph import Graph, read_graph
from stages.quantization.placement.plan import Plan, Quantizer
from stages.quantization.planning import make_plan
from stages.quantization.solution.solve import Solved
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import Statistics
from tests.quantization.reference_runs import core, target


def infer(tested: ov.Model, samples: Iterable[Any]) -> Iterator[list[np.ndarray]]:
    """The outputs for each sample, in f32: an array, or arrays by input name. A state begins afresh for each."""
    request = core().compile_model(tested, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    for sample in samples:
        if tested.get_sinks():
            request.reset_state()
        yield [np.array(value) for value in request.infer(sample if isinstance(sample, dict) else [sample]).values()]


def tensor(tested: ov.Model, name: str, samples: Iterable[Any], port: int = 0) -> list[np.ndarray]:
    """What an operation of a model gives for each sample."""
    clone = tested.clone()
    node = next(node for node in clone.get_ops() if node.get_friendly_name() == name)
    partial = ov.Model([op.result(node.output(port))], clone.get_parameters())
    return [values[0] for values in infer(partial, samples)]


def statistics_of(
    tested: ov.Model,
    samples: Sequence[Any],
    probabilities: Sequence[float] = (),
    channel_probabilities: Sequence[float] = (),
    device: str = "any",
    every_channel: bool = False,
    pot_compatible: bool = True,
) -> Statistics:
    """What one pass over the samples leaves."""
    points = statistics_points(read_graph(tested), target(device), every_channel, pot_compatible)
    return collect(tested, points, probabilities, channel_probabilities, lambda instrumented: infer(instrumented, samples), len(samples))


@dataclass(frozen=True)
class Quantized:
    """A model quantized with its plan and its numbers."""

    graph: Graph
    plan: Plan
    solved: Solved
    model: ov.Model

    def quantizer(self, name: str) -> Quantizer:
        """The quantizer of that name."""
        return next(quantizer for quantizer in self.plan.quantizers if quantizer.name == name)

    def names(self) -> set[str]:
        """Names of all quantizers."""
        return {quantizer.name for quantizer in self.plan.quantizers}

    def floats(self) -> dict[tuple[str, int | None], str]:
        """Why an input, or a whole operation (None), stays in floating point."""
        return {(entry.name, entry.port): entry.reason for entry in self.plan.floats}


def plan_of(tested: ov.Model, device: str = "any", statistics: Statistics | None = None, **config: Any) -> Plan:
    """The plan for a model under a configuration."""
    return make_plan(read_graph(tested), target(device), schema.Quantization(**config), statistics)


def quantized(
    tested: ov.Model,
    samples: Sequence[Any],
    device: str = "any",
    probabilities: Sequence[float] = (),
    channel_probabilities: Sequence[float] = (),
    correction: schema.BiasCorrection | None = None,
    every_channel: bool = False,
    **config: Any,
) -> Quantized:
    """A model quantized from the samples; `config`: keys of schema.Quantization."""
    statistics = statistics_of(
        tested, samples, probabilities, channel_probabilities, device, every_channel, config.get("pot_compatible", False)
    )
    plan = plan_of(tested, device, statistics, **config)
    result, solved = build(
        tested, statistics, plan, correction or schema.BiasCorrection(enabled=False), config.get("pot_compatible", False)
    )
    return Quantized(read_graph(tested), plan, solved, result)


def compressed(tested: ov.Model) -> ov.Model:
    """A copy with its weights folded into int8."""
    clone = tested.clone()
    compress_weights(clone)
    return clone


def same(first: ov.Model, second: ov.Model, samples: Sequence[Any], tolerance: float = 1e-5) -> None:
    """AssertionError unless both models give the same outputs, to a share of each output's largest value."""
    for ours, theirs in zip(infer(first, samples), infer(second, samples), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max(initial=0.0))))


def types(tested: ov.Model) -> list[str]:
    return [node.get_type_name() for node in tested.get_ordered_ops()]


def nodes(tested: ov.Model) -> dict[str, ov.Node]:
    return {node.get_friendly_name(): node for node in tested.get_ops()}


def described(tested: ov.Model) -> list[Any]:
    return [
        (node.get_friendly_name(), node.get_type_name(), [value.get_node().get_friendly_name() for value in node.input_values()])
        for node in tested.get_ordered_ops()
    ]


def close(result: Quantized, tested: ov.Model, samples: list[Any], share: float = 0.15) -> None:
    """The quantized model means nearly the same, to a share of each output's spread; what CPUs without VNNI make of it may saturate."""
    for ours, theirs in zip(infer(written_out(result.model), samples), infer(tested, samples), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.sqrt(np.mean((one - other) ** 2)) <= share * max(float(other.std()), 1e-6)
