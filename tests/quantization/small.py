"""Small models with named operations, and the whole way from one to its quantized version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages import schema
from stages.quantization.build import build, compress_weights
from stages.quantization.collection import collect
from stages.quantization.graph import Graph, read_graph
from stages.quantization.plan import Plan, Quantizer
from stages.quantization.planning import make_plan
from stages.quantization.points import statistics_points
from stages.quantization.solve import Solved
from stages.quantization.statistics import Statistics
from tests.quantization.reference_runs import core, target

IMAGE = (1, 3, 8, 8)


def named(node: ov.Node, name: str) -> ov.Node:
    """The node under a friendly name."""
    node.set_friendly_name(name)
    return node


def parameter(shape: Sequence[int] = IMAGE, name: str = "x", dtype: Any = np.float32) -> ov.Node:
    """A model input; -1 keeps a dimension dynamic."""
    node = named(op.parameter(ov.PartialShape(list(shape)), dtype, name=name), name)
    node.output(0).set_names({name})
    return node


def constant(value: Any, name: str, dtype: Any = np.float32) -> ov.Node:
    """A constant."""
    return named(op.constant(np.asarray(value, dtype)), name)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def convolution(source: Any, weights: np.ndarray, name: str = "conv", bias: np.ndarray | None = None, **attributes: Any) -> ov.Node:
    """A convolution (grouped if the weights have one dimension more than its input) with an optional bias [C]."""
    rank = len(source.output(0).get_partial_shape())
    given: dict[str, Any] = {"pads_begin": [0], "pads_end": [0], "strides": [1], "dilations": [1], **attributes}
    lists = {key: value * (rank - 2) if len(value) == 1 else value for key, value in given.items() if key != "auto_pad"}
    create = op.convolution if weights.ndim == rank else op.group_convolution
    kernel = constant(weights, f"{name}/weights")
    arguments = (lists["strides"], lists["pads_begin"], lists["pads_end"], lists["dilations"], given.get("auto_pad", "explicit"))
    node = named(create(source, kernel, *arguments), name)
    if bias is None:
        return node
    values = constant(bias.reshape(1, -1, *[1] * (rank - 2)), f"{name}/bias_values")
    return named(op.add(node, values), f"{name}/biased")


def matmul(source: Any, weights: np.ndarray, name: str = "matmul", bias: np.ndarray | None = None, **attributes: Any) -> ov.Node:
    """A MatMul with constant weights on port 1 and an optional bias [C]."""
    given = {"transpose_a": False, "transpose_b": False, **attributes}
    node = named(op.matmul(source, constant(weights, f"{name}/weights"), given["transpose_a"], given["transpose_b"]), name)
    return node if bias is None else named(op.add(node, constant(bias, f"{name}/bias_values")), f"{name}/biased")


def model(outputs: ov.Node | Sequence[ov.Node], *inputs: ov.Node) -> ov.Model:
    """A model whose outputs carry the tensor names out0, out1, ..."""
    results = []
    for index, node in enumerate([outputs] if isinstance(outputs, ov.Node) else outputs):
        node.output(0).set_names({f"out{index}"})
        results.append(named(op.result(node), f"result{index}"))
    return ov.Model(results, list(inputs))


def infer(tested: ov.Model, samples: Iterable[Any]) -> Iterator[list[np.ndarray]]:
    """The outputs for each sample, in f32: an array, or arrays by input name."""
    compiled = core().compile_model(tested, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sample in samples:
        yield [np.array(value) for value in compiled(sample if isinstance(sample, dict) else [sample]).values()]


def tensor(tested: ov.Model, name: str, samples: Iterable[Any], port: int = 0) -> list[np.ndarray]:
    """What an operation of a model gives for each sample."""
    clone = tested.clone()
    node = next(node for node in clone.get_ops() if node.get_friendly_name() == name)
    partial = ov.Model([op.result(node.output(port))], clone.get_parameters())
    return [values[0] for values in infer(partial, samples)]


def images(count: int = 3, shape: Sequence[int] = IMAGE, seed: int = 7) -> list[np.ndarray]:
    """Samples with a different spread each."""
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(tuple(shape)) * (index + 1)).astype(np.float32) for index in range(count)]


def statistics_of(
    tested: ov.Model,
    samples: Sequence[Any],
    probabilities: Sequence[float] = (),
    channel_probabilities: Sequence[float] = (),
    device: str = "any",
    every_channel: bool = False,
) -> Statistics:
    """What one pass over the samples leaves."""
    points = statistics_points(read_graph(tested), target(device), every_channel)
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


def plan_of(tested: ov.Model, device: str = "any", **config: Any) -> Plan:
    """The plan for a model under a configuration."""
    return make_plan(read_graph(tested), target(device), schema.Quantization(**config))


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
    statistics = statistics_of(tested, samples, probabilities, channel_probabilities, device, every_channel)
    plan = plan_of(tested, device, **config)
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
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(np.abs(other).max())))
