"""One inference pass over the calibration samples, reduced to statistics while it runs.

Reductions, and the few values among which a tail must lie, are found inside the graph, beside the model's own operations.
Only tensors of dynamic shape come to Python as a whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.errors import UserError
from stages.quantization.alignment import TAIL, pair_alignment
from stages.quantization.graph import Graph, Port, bias_add, input_channel_axis, output_channel_axis, read_graph
from stages.quantization.plan import TensorName
from stages.quantization.points import Points
from stages.quantization.statistics import Array, Statistics
from stages.quantization.tails import channel_extremes, channel_tails_in_graph, extremes, tail_length, tails_in_graph

Store = Callable[[int, NDArray[Any]], None]  # keep the value of the sample at a position
Infer = Callable[[ov.Model], Iterable[Sequence[NDArray[Any]]]]


class _Output(NamedTuple):
    """One model output of the instrumented graph and what to do with its values."""

    order: int  # place of its producer in the graph
    output: ov.Output
    store: Store


class _Tails(NamedTuple):
    """Tails of whole tensors, or of their channels: how they are found, how far they reach, and where they go."""

    lowest: dict[TensorName, Array]
    highest: dict[TensorName, Array]
    size: dict[TensorName, NDArray[np.int64]]
    in_graph: Callable[[ov.Output, int], tuple[ov.Output, ov.Output]]
    of_array: Callable[..., Array]
    count: Callable[[tuple[int, ...]], int]  # values that a tail is taken of, from the tensor's shape
    probabilities: Sequence[float]


def collect(
    model: ov.Model,
    points: Points,
    outlier_probs: Sequence[float],
    channel_outlier_probs: Sequence[float],
    infer: Infer,
    samples: int,
) -> Statistics:
    """Run the calibration samples and reduce what they leave at `points`.

    One pass. Only where quantiles per channel are asked for, and channels may be aligned, a second one collects the
    quantiles of the aligned tensors: they follow from nothing that is stored.

    Args:
        model: The floating-point model, which stays as it is.
        points: Of the graph read from `model`.
        outlier_probs: Probabilities of the quantiles that are to be taken of whole tensors.
        channel_outlier_probs: The same per channel.
        infer: Runs the instrumented model in f32 over the samples and yields the outputs of each, in sample order.
        samples: How many there are.

    Raises:
        UserError: a weighted operation's input or output is not finite for some sample, or a tensor has no known rank.
    """
    statistics = Statistics(samples)
    statistics.derived = {_name(port): (_name(source), scale, offset) for port, (source, scale, offset) in points.derived.items()}

    def of_samples(graph: Graph) -> Iterator[_Output]:
        return _outputs(graph, points, outlier_probs, channel_outlier_probs, statistics)

    def of_aligned(graph: Graph) -> Iterator[_Output]:
        return _aligned_outputs(graph, points, outlier_probs, statistics)

    _run(model, of_samples, infer, samples)
    for table in (statistics.input_mean, statistics.output_mean):
        for name in table:
            table[name] = table[name] / samples
    if channel_outlier_probs and points.pairs:
        _run(model, of_aligned, infer, samples)
    return statistics


def _run(model: ov.Model, outputs_of: Callable[[Graph], Iterator[_Output]], infer: Infer, samples: int) -> None:
    """Run a copy of the model whose outputs are `outputs_of` its graph, and store their values."""
    clone = model.clone()
    outputs = sorted(outputs_of(read_graph(clone)), key=lambda output: output.order)
    if not outputs:
        return
    for result in list(clone.get_results()):
        clone.remove_result(result)
    clone.add_results([op.result(output.output) for output in outputs])
    clone.validate_nodes_and_infer_types()
    seen = 0
    for values in infer(clone):
        for output, value in zip(outputs, values, strict=True):
            output.store(seen, value)
        seen += 1
    if seen != samples:
        raise UserError(f"{seen} calibration samples were read where {samples} were expected")


# ------------------------------------------------------------------------------------------------------------- outputs


def _outputs(
    graph: Graph, points: Points, outlier_probs: Sequence[float], channel_outlier_probs: Sequence[float], statistics: Statistics
) -> Iterator[_Output]:
    """Everything that the points ask for. They were read from another copy of the model: names lead to this one."""
    whole = _whole(statistics.lowest, statistics.highest, statistics.size, outlier_probs)
    channel = _Tails(
        statistics.channel_lowest,
        statistics.channel_highest,
        statistics.channel_size,
        channel_tails_in_graph,
        channel_extremes,
        lambda shape: math.prod(shape) // shape[1],
        channel_outlier_probs,
    )
    aligned = {second.inputs[0] for _, second in points.pairs}
    for port in points.tensors:
        twin = _twin(graph, port)
        yield from _tails(twin, _output(twin), whole, statistics.samples)
    for port in points.perchannel:
        twin = _twin(graph, port)
        tails = channel._replace(probabilities=[*channel_outlier_probs, TAIL]) if port in aligned else channel
        yield from _tails(twin, _output(twin), tails, statistics.samples)
    for node in (graph.by_name[node.name] for node in points.inputs):
        port = node.inputs[0]
        yield _Output(port.node.order, _mean(port, input_channel_axis(node)), _sum(statistics.input_mean, node.name))
        shape = port.node.shapes[port.index] or ()
        if -1 in shape:
            yield _Output(port.node.order, op.shape_of(_output(port)).output(0), _shapes(statistics.input_shape, node.name))
        else:
            statistics.input_shape[node.name] = shape
    for node in (graph.by_name[node.name] for node in points.outputs):
        end = bias_add(node) or node
        yield _Output(end.order, _mean(Port(end, 0), output_channel_axis(node)), _sum(statistics.output_mean, node.name))


def _aligned_outputs(graph: Graph, points: Points, outlier_probs: Sequence[float], statistics: Statistics) -> Iterator[_Output]:
    """The tails of the aligned tensors, aligned as the first pass says."""
    sizes: dict[TensorName, NDArray[np.int64]] = {}
    tails = _whole(statistics.aligned_lowest, statistics.aligned_highest, sizes, outlier_probs)
    for first, second in points.pairs:
        port = _twin(graph, second.inputs[0])
        alignment = pair_alignment(first, second, statistics)
        channels = (-1, *[1] * (len(port.node.shapes[port.index] or ()) - 2))
        shift, scale = (op.constant(values.astype(np.float32).reshape(channels)) for values in (alignment.shift, alignment.scale))
        output = op.divide(op.subtract(_output(port), shift), scale).output(0)
        yield from _tails(port, output, tails, statistics.samples)


def _whole(
    lowest: dict[TensorName, Array],
    highest: dict[TensorName, Array],
    size: dict[TensorName, NDArray[np.int64]],
    probabilities: Sequence[float],
) -> _Tails:
    return _Tails(lowest, highest, size, tails_in_graph, extremes, math.prod, probabilities)


def _tails(port: Port, output: ov.Output, tails: _Tails, samples: int) -> Iterator[_Output]:
    """Where the lowest and highest values of `output` come from: few values of a static shape, else the whole tensor.

    They are kept as those of `port`.
    """
    name, shape = _name(port), port.node.shapes[port.index]
    size = tails.count(shape) if shape is not None and -1 not in shape else None
    tails.size[name] = np.zeros(samples, np.int64)

    def storing(table: dict[TensorName, Array], upper: bool) -> Store:
        def store(position: int, value: NDArray[Any]) -> None:
            tails.size[name][position] = count = tails.count(value.shape) if size is None else size
            tail = tails.of_array(value, tail_length(count, tails.probabilities), upper=upper)
            stored, length = table.setdefault(name, np.full((samples, *tail.shape[:-1], 1), np.nan, np.float32)), tail.shape[-1]
            if stored.shape[-1] < length:
                missing = np.full((*stored.shape[:-1], length - stored.shape[-1]), np.nan, np.float32)
                table[name] = stored = np.concatenate([stored, missing], axis=-1)
            stored[position, ..., :length] = tail

        return store

    ends = (output, output) if size is None else tails.in_graph(output, tail_length(size, tails.probabilities))
    for end, table, upper in zip(ends, (tails.lowest, tails.highest), (False, True), strict=True):
        yield _Output(port.node.order, end, storing(table, upper))


def _twin(graph: Graph, port: Port) -> Port:
    return Port(graph.by_name[port.node.name], port.index)


def _name(port: Port) -> TensorName:
    return TensorName(port.node.name, port.index)


def _output(port: Port) -> ov.Output:
    return port.node.operation.output(port.index)


def _mean(port: Port, channel_axis: int) -> ov.Output:
    """The mean over all axes but the channel's."""
    shape = port.node.shapes[port.index]
    if shape is None:
        raise UserError(f"{port.node}: a tensor of unknown rank cannot be quantized; give model.input_shape")
    axes = np.array([axis for axis in range(len(shape)) if axis != channel_axis % len(shape)], dtype=np.int64)
    return op.reduce_mean(_output(port), axes, False).output(0)


# ------------------------------------------------------------------------------------------------------------- storing


def _sum(table: dict[str, NDArray[np.float64]], name: str) -> Store:
    def store(position: int, value: NDArray[Any]) -> None:
        # Reductions pass over a NaN; a mean does not.
        if not math.isfinite(value.sum()):
            raise UserError(f"the model computes values that are not finite at {name} for calibration sample {position}")
        table[name] = table[name] + value if name in table else value.astype(np.float64)

    return store


def _shapes(table: dict[str, tuple[int, ...]], name: str) -> Store:
    counts: Counter[tuple[int, ...]] = Counter()

    def store(position: int, value: NDArray[Any]) -> None:
        counts[tuple(int(size) for size in value)] += 1
        table[name] = counts.most_common(1)[0][0]

    return store
