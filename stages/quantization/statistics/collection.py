"""One inference pass over the calibration samples, reduced to statistics while it runs.

Reductions, and the few values among which a tail must lie, are found inside the graph, beside the model's own operations.
Only tensors of dynamic shape come to Python as a whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.quantization.model.graph import Graph, Port, bias_add, input_channel_axis, output_channel_axis
from stages.quantization.placement.alignment_pairs import TAIL
from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.distribution import counted, picked_places, sparse
from stages.quantization.statistics.means import Means, channel_mean
from stages.quantization.statistics.passes import Infer, Store, TensorRequest, run_passes
from stages.quantization.statistics.points import Points
from stages.quantization.statistics.store import Array, Statistics
from stages.quantization.statistics.tail_search import Ends, find_tails
from stages.quantization.statistics.tails import extremes, tail_length


class _Tails(NamedTuple):
    """Tails of whole tensors, or of their channels: how far they reach, and where they go."""

    lowest: dict[TensorName, Array]
    highest: dict[TensorName, Array]
    size: dict[TensorName, NDArray[np.int64]]
    columns: Callable[[NDArray[Any]], NDArray[Any]]  # of samples [n, *tensor shape]: what a tail is taken of, in the last axis
    count: Callable[[Sequence[int]], int]  # how many values that are, from the tensor's shape
    probabilities: Sequence[float]
    least: Callable[[Sequence[int]], int] | None = None  # from the shape: how many values a tail needs for other reasons
    counts: dict[TensorName, NDArray[np.int64]] | None = None  # how the values are distributed; None: not asked for

    def length(self, shape: Sequence[int]) -> int:
        """How many values a tail of a tensor of that shape needs."""
        count, least = self.count(shape), self.least(shape) if self.least is not None else 0
        return max(tail_length(count, self.probabilities), min(count, least))


def collect(
    model: ov.Model,
    points: Points,
    outlier_probs: Sequence[float],
    channel_outlier_probs: Sequence[float],
    infer: Infer,
    samples: int,
    budget: int | None = None,
) -> Statistics:
    """Run the calibration samples and reduce what they leave at `points`.

    Args:
        model: The floating-point model, which stays as it is.
        points: Of the graph read from `model`.
        outlier_probs: Probabilities of the quantiles that are to be taken of whole tensors.
        channel_outlier_probs: The same per channel.
        infer: Runs the instrumented model in f32 over the samples and yields the outputs of each, in sample order.
        samples: How many there are.
        budget: Bytes of a sample's tensors that leave the model in one pass (`run_passes`); None: one pass for all.

    Raises:
        UserError: a weighted operation's input or output is not finite for some sample, or a tensor has no known rank.
    """
    statistics, input_means, output_means = Statistics(samples), Means(), Means()
    statistics.derived = {_name(port): (_name(source), scale, offset) for port, (source, scale, offset) in points.derived.items()}

    def of_samples(graph: Graph) -> Iterator[TensorRequest]:
        return _wanted(graph, points, outlier_probs, channel_outlier_probs, statistics, input_means, output_means)

    run_passes(model, of_samples, infer, samples, budget)
    statistics.input_mean, statistics.output_mean = input_means.value(), output_means.value()
    statistics.distribution = {name: sparse(counts) for name, counts in statistics.distribution.items()}
    return statistics


# -------------------------------------------------------------------------------------------------------------- wanted


def _wanted(
    graph: Graph,
    points: Points,
    outlier_probs: Sequence[float],
    channel_outlier_probs: Sequence[float],
    statistics: Statistics,
    input_means: Means,
    output_means: Means,
) -> Iterator[TensorRequest]:
    """Everything that the points ask for, the same each time. They were read from another copy of the model: names lead to this one."""
    whole = _of_tensors(statistics.lowest, statistics.highest, statistics.size, outlier_probs)._replace(counts=statistics.distribution)
    channel = _Tails(
        statistics.channel_lowest,
        statistics.channel_highest,
        statistics.channel_size,
        _channel_columns,
        lambda shape: math.prod(shape) // shape[1],
        channel_outlier_probs,
    )
    tensors, perchannel = set(points.tensors), set(points.perchannel)
    aligned = {second.inputs[0] for _, second in points.pairs}
    for port in dict.fromkeys([*points.tensors, *points.perchannel]):
        twin = _twin(graph, port)
        of_channels = channel
        if port in aligned:
            # Once channels are shifted and scaled, a tail of the whole tensor may lie in any one of them.
            least = whole.length if channel_outlier_probs else None
            of_channels = channel._replace(probabilities=[*channel_outlier_probs, TAIL], least=least)
        yield from _tails(
            twin,
            _output(twin),
            whole if port in tensors else None,
            of_channels if port in perchannel else None,
            statistics.samples,
            from_zero=port in points.from_zero,
        )
    for port in (_twin(graph, port) for port in points.features):
        yield TensorRequest(port.node.order, feature_extremes(port), _feature_store(statistics, _name(port)))
    for node in (graph.by_name[node.name] for node in points.inputs):
        port = node.inputs[0]
        yield _mean(port, input_channel_axis(node), node.name, input_means)
        shape = port.node.shapes[port.index] or ()
        if -1 in shape:
            yield TensorRequest(port.node.order, op.shape_of(_output(port)).output(0), _shapes(statistics.input_shape, node.name))
        else:
            statistics.input_shape[node.name] = shape
    for node in (graph.by_name[node.name] for node in points.outputs):
        yield _mean(Port(bias_add(node) or node, 0), output_channel_axis(node), node.name, output_means)


def _of_tensors(
    lowest: dict[TensorName, Array],
    highest: dict[TensorName, Array],
    size: dict[TensorName, NDArray[np.int64]],
    probabilities: Sequence[float],
) -> _Tails:
    return _Tails(lowest, highest, size, lambda values: values.reshape(len(values), -1), math.prod, probabilities)


def _channel_columns(values: NDArray[Any]) -> NDArray[Any]:
    """The values of each channel (axis 1 of a tensor) of samples [n, N, C, ...] -> [n, C, N * ...]."""
    return np.moveaxis(values, 2, 1).reshape(len(values), values.shape[2], -1)


def _tails(
    port: Port, output: ov.Output, whole: _Tails | None, channels: _Tails | None, samples: int, from_zero: bool = False
) -> Iterator[TensorRequest]:
    """Where the lowest and highest values of `output` come from: few values of a static shape, else the whole tensor.

    They are kept as those of `port`. from_zero: the lowest count as zeros.
    """
    name, shape, order = _name(port), port.node.shapes[port.index], port.node.order
    for tails in filter(None, (whole, channels)):
        tails.size.setdefault(name, np.zeros(samples, np.int64))
    if shape is None or -1 in shape:

        def store(position: int, values: NDArray[Any]) -> None:
            for tails in filter(None, (whole, channels)):
                columns = tails.columns(values)
                tails.size[name][position] = columns.shape[-1]
                if not values.size:
                    columns = np.full((*columns.shape[:-1], 1), np.nan, np.float32)
                for table, upper in ((tails.lowest, False), (tails.highest, True)):
                    _keep(table, name, position, extremes(columns, max(1, tails.length(values.shape[1:])), upper=upper), samples)
                if tails.counts is not None and values.size:
                    _count(tails.counts, name)(position, columns[:, picked_places(columns.shape[-1])])

        yield TensorRequest(order, output, store)
        return
    # Where the two tails of a small tensor overlap, both must be what they are.
    overlap = any(tails.count(shape) <= 2 * tails.length(shape) for tails in (whole, channels) if tails is not None)
    lowest = overlap or not from_zero
    found = find_tails(output, whole and whole.length(shape), channels and channels.length(shape), lowest)
    if whole is not None and whole.counts is not None and found.whole is not None:
        count = _count(whole.counts, name)
        if found.picked is not None:
            yield TensorRequest(order, found.picked, count)
        else:
            places = picked_places(whole.count(shape))
            yield TensorRequest(order, found.whole[1], lambda position, values: count(position, values[:, places]))
    for asked, ends, columns in ((whole, found.whole, _flat), (channels, found.channels, _as_they_are)):
        if asked is not None and ends is not None:
            asked.size[name][:] = asked.count(shape)
            yield from _searched(name, order, ends, asked, asked.length(shape), columns, samples)


def _searched(
    name: TensorName,
    order: int,
    ends: Ends,
    tails: _Tails,
    length: int,
    columns: Callable[[NDArray[Any]], NDArray[Any]],
    samples: int,
) -> Iterator[TensorRequest]:
    """Keep the tails among the candidates that leave the graph."""

    def storing(table: dict[TensorName, Array], upper: bool) -> Store:
        return lambda position, values: _keep(table, name, position, extremes(columns(values), length, upper=upper), samples)

    low, high = storing(tails.lowest, False), storing(tails.highest, True)
    if ends[0] is None:

        def highest(position: int, values: NDArray[Any]) -> None:
            high(position, values)
            if name not in tails.lowest:
                tails.lowest[name] = np.zeros_like(tails.highest[name])

        yield TensorRequest(order, ends[1], highest)
    elif ends[0] == ends[1]:

        def both(position: int, values: NDArray[Any]) -> None:
            low(position, values)
            high(position, values)

        yield TensorRequest(order, ends[0], both)
    else:
        yield TensorRequest(order, ends[0], low)
        yield TensorRequest(order, ends[1], high)


def feature_extremes(port: Port) -> ov.Output:
    """The lowest and highest value of each index of the last axis [2, F]; infinite where there are none."""
    rank = len(port.node.shapes[port.index] or ())
    axes = np.arange(rank - 1, dtype=np.int64)
    ends = [op.unsqueeze(reduce(_output(port), axes, False), np.int64(0)) for reduce in (op.reduce_min, op.reduce_max)]
    return op.concat(ends, 0).output(0)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _as_they_are(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _twin(graph: Graph, port: Port) -> Port:
    return Port(graph.by_name[port.node.name], port.index)


def _name(port: Port) -> TensorName:
    return TensorName(port.node.name, port.index)


def _output(port: Port) -> ov.Output:
    return port.node.operation.output(port.index)


def _mean(port: Port, channel_axis: int, name: str, means: Means) -> TensorRequest:
    mean, marked = channel_mean(port, channel_axis)
    return TensorRequest(port.node.order, mean, lambda position, values: means.add(name, position, values, marked=marked))


# ------------------------------------------------------------------------------------------------------------- storing


def _keep(table: dict[TensorName, Array], name: TensorName, position: int, tails: Array, samples: int) -> None:
    """Enter the tails [n, ..., k] of n samples; the table grows with the longest, and what is missing is NaN."""
    length = tails.shape[-1]
    stored = (
        table.setdefault(name, np.full((samples, *tails.shape[1:-1], length), np.nan, np.float32)) if name not in table else table[name]
    )
    if stored.shape[-1] < length:
        missing = np.full((*stored.shape[:-1], length - stored.shape[-1]), np.nan, np.float32)
        table[name] = stored = np.concatenate([stored, missing], axis=-1)
    stored[position : position + len(tails), ..., :length] = tails


def _count(table: dict[TensorName, NDArray[np.int64]], name: TensorName) -> Store:
    def store(_: int, values: NDArray[Any]) -> None:
        numbers = counted(values)
        table[name] = table[name] + numbers if name in table else numbers

    return store


def _feature_store(statistics: Statistics, name: TensorName) -> Store:
    def store(position: int, values: NDArray[Any]) -> None:
        empty = np.full((statistics.samples, *values.shape[1:]), np.nan, np.float32)
        statistics.features.setdefault(name, empty)[position : position + len(values)] = values

    return store


def _shapes(table: dict[str, tuple[int, ...]], name: str) -> Store:
    counts: Counter[tuple[int, ...]] = Counter()

    def store(position: int, values: NDArray[Any]) -> None:
        counts.update(tuple(int(size) for size in value) for value in values if value.all())
        table.update((name, shape) for shape, _ in counts.most_common(1))

    return store
