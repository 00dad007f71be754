"""Signal-to-quantization-noise ratio (SQNR) of every quantizer: how much of a tensor survives its rounding and clipping.

The ratio is the power of the floating-point tensor over the power of the error that its FakeQuantize alone makes, in
decibels: 10 dB less noise is a tenth of the power, one bit more is worth about 6 dB. Errors that arrive from earlier
layers are not in it, so a low ratio names the layer that causes a problem instead of all layers behind it.

The tensors are those of the aligned model (`aligned_model`): that is what the ranges are for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as operations

from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.build import build
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Graph, Port, bias_add, constant_value, read_graph
from stages.quantization.placement.plan import Plan, Quantizer
from stages.quantization.solution.ranges import Range
from stages.quantization.solution.solve import dequantized_weights, quantized_constant, range_shape
from stages.quantization.statistics.store import Statistics

LARGEST_SQUARED = 1e12  # the sum of the squares of a billion such numbers is still far from the largest in f32


def aligned_model(model: ov.Model, statistics: Statistics, plan: Plan) -> ov.Model:
    """The floating-point model after channel alignment and smoothing, to which the plan's ranges belong; it computes the same."""
    return build(model, statistics, replace(plan, quantizers=()))[0]


def ranges_from_json(data: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges by quantizer name, as `quantizers.json` holds them: a scalar, or [C] per channel."""

    def border(values: list[float]) -> NDArray[np.float64]:
        return np.asarray(values[0] if len(values) == 1 else values, np.float64)

    return {entry["name"]: Range(border(entry["input_low"]), border(entry["input_high"])) for entry in data["quantizers"]}


def decibels(signal: float, noise: float) -> float | None:
    """A power ratio in decibels, rounded to what is worth reading; None where there is no signal or no noise, or more than numbers hold."""
    return round(10.0 * float(np.log10(signal / noise)), 2) if 0 < signal < math.inf and 0 < noise < math.inf else None


def noise_shares(ratios: Mapping[str, float | None]) -> dict[str, float]:
    """Noise power over signal power of what is given in decibels; none where there is no noise."""
    return {name: 0.0 if ratio is None else 10.0 ** (-ratio / 10.0) for name, ratio in ratios.items()}


def weight_noise(
    model: ov.Model, plan: Plan, ranges: Mapping[str, Range], tuned: Mapping[str, NDArray[np.float32]] | None = None
) -> dict[str, float | None]:
    """SQNR in dB of the weight quantizers of a floating-point model, by quantizer name.

    tuned: by quantizer name, the weights that it quantizes in place of the model's.
    """
    graph = read_graph(model)
    noise: dict[str, float | None] = {}
    for quantizer in plan.quantizers:
        if quantizer.kind == WEIGHTS:
            weights = constant_value(quantized_constant(graph, quantizer)).astype(np.float64)
            stored = (tuned or {}).get(quantizer.name, weights)
            error = dequantized_weights(graph, quantizer, stored, ranges[quantizer.name]) - weights
            noise[quantizer.name] = decibels(float(np.sum(weights**2)), float(np.sum(error**2)))
    return noise


class ActivationNoise:
    """SQNR of the activation quantizers, measured within the floating-point model while it runs.

    `model` is a copy of the floating-point model whose only outputs are, per quantizer and channel, the Euclidean norms of the
    tensor and of its quantization error, in the order in which they are computed (another order costs memory and time). Norms take
    one operation where sums of squares take two, and operations take time to compile.
    Compile and run it in f32, and hand the outputs of every inference to `ratios` or `shares`.
    """

    def __init__(self, model: ov.Model, plan: Plan, ranges: Mapping[str, Range]) -> None:
        self.model = model.clone()
        graph = read_graph(self.model)
        quantizers = [quantizer for quantizer in plan.quantizers if quantizer.kind == ACTIVATIONS]
        read = {quantizer: _read(graph, quantizer, plan) for quantizer in quantizers}
        quantizers.sort(key=lambda quantizer: (read[quantizer].node.order, read[quantizer].index))
        self.names = [quantizer.name for quantizer in quantizers]
        results = []
        for quantizer in quantizers:
            port = read[quantizer]
            shape, source = port.node.shapes[port.index] or (), port.node.operation.output(port.index)
            spread = range_shape(graph, quantizer, shape)
            low, high = (border.astype(np.float32).reshape(spread if border.size > 1 else ()) for border in ranges[quantizer.name])
            quantized = operations.fake_quantize(source, low, high, low, high, quantizer.scheme.levels(ACTIVATIONS))
            error = operations.subtract(quantized, source)
            axes = np.array([axis for axis in range(len(shape)) if axis != channel_axis(shape)], dtype=np.int64)
            results += [operations.result(operations.reduce_l2(tensor, axes)) for tensor in _squarable((source, error), low, high)]
        for result in list(self.model.get_results()):
            self.model.remove_result(result)
        self.model.add_results(results)
        self.model.validate_nodes_and_infer_types()

    def ratios(self, outputs: Iterable[Sequence[NDArray[Any]]]) -> dict[str, float | None]:
        """SQNR in dB by quantizer name: signal over error power of all inferences together.

        Args:
            outputs: Of each inference, in the model's order.
        """
        return {name: decibels(float(np.sum(signal)), float(np.sum(error))) for name, (signal, error) in self._powers(outputs)}

    def shares(self, outputs: Iterable[Sequence[NDArray[Any]]]) -> dict[str, float]:
        """Error over signal power by quantizer name, at most 1, as the mean over the channels that carry a signal.

        All channels count alike, so this names tensors of which a few channels are so large that little is left of the others.

        Args:
            outputs: As for `ratios`.
        """
        found = {}
        for name, (signal, error) in self._powers(outputs):
            alive = (signal > 0) & np.isfinite(signal) & np.isfinite(error)
            found[name] = float(np.mean(np.minimum(error[alive] / signal[alive], 1.0))) if alive.any() else 0.0
        return found

    def _powers(self, outputs: Iterable[Sequence[NDArray[Any]]]) -> Iterator[tuple[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
        """By quantizer name, the sums of squares of its tensor and of the error, [C] each."""
        sums: list[NDArray[np.float64]] = []
        for values in outputs:
            squares = [value.astype(np.float64) ** 2 for value in values]
            sums = [total + square for total, square in zip(sums, squares, strict=True)] if sums else squares
        return zip(self.names, zip(sums[::2], sums[1::2], strict=True), strict=True)


def _read(graph: Graph, quantizer: Quantizer, plan: Plan) -> Port:
    """The tensor that a quantizer is put on: behind the bias that alignment gave to a layer without one, and behind smoothing."""
    for tensor, readers in plan.smoothed:
        if tensor == quantizer.source:
            return graph.by_name[readers[0]].inputs[0]
    source = Port(graph.by_name[quantizer.source.name], quantizer.source.port)
    given = bias_add(source.node) if source.node.type in OPERATIONS_WITH_WEIGHTS else None
    return source if given is None or given.name in {place.name for place in quantizer.consumers} else Port(given, 0)


def _squarable(tensors: Iterable[Any], low: NDArray[np.float32], high: NDArray[np.float32]) -> list[Any]:
    """The tensors, or the same share of each where f32 cannot hold the squares of what lies in the range."""
    largest = max(float(np.abs(border).max()) for border in (low, high))
    if not largest or 1 / LARGEST_SQUARED <= largest <= LARGEST_SQUARED:
        return list(tensors)
    # A power of two: nothing is rounded.
    factor = np.float32(2.0 ** -math.floor(math.log2(largest)))
    return [operations.multiply(tensor, factor) for tensor in tensors]


def channel_axis(shape: Sequence[int]) -> int | None:
    """Where a tensor's channels are: on axis 1 of images, on the last axis of rows; None where their number is not known."""
    axis = 1 if len(shape) > 3 else len(shape) - 1
    return axis if axis > 0 and shape[axis] > 0 else None
