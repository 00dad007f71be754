"""One inference pass over the calibration samples, and the statistics it leaves behind.

Reductions run inside the graph; only quantiles need the tensors themselves, and read them where OpenVINO keeps them.
Values are stored per sample, so that every preset, mode, estimator and aggregator is arithmetic on them later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.errors import UserError
from stages.quantization.alignment import TAIL
from stages.quantization.graph import Graph, Node, Port, bias_add, input_channel_axis, output_channel_axis, read_graph
from stages.quantization.plan import TensorName
from stages.quantization.points import Points
from stages.quantization.tails import channel_extremes, channel_tails_in_graph, extremes, tail_length, tails_in_graph

Array = NDArray[np.float32]
FORMAT = 1
PER_TENSOR = ("lowest", "highest", "size", "channel_lowest", "channel_highest", "channel_size")


@dataclass
class Statistics:
    """Statistics of the calibration samples, by tensor name.

    lowest, highest: [N, k], the k lowest (highest) values of each sample from the extreme inwards, NaN where a sample has
    fewer. size: [N], how many values a sample has. channel_lowest, channel_highest: [N, C, k], the same per channel (axis
    1), with channel_size [N] values in each channel. input_mean, output_mean: by operation name [C], mean
    over samples and all axes but the channel's; the output's includes the bias. input_shape: by operation name, the most
    frequent shape. derived: tensor -> (stored tensor, scale, offset) with x = (y - offset) / scale of each stored value y.
    """

    samples: int = 0
    lowest: dict[TensorName, Array] = field(default_factory=dict)
    highest: dict[TensorName, Array] = field(default_factory=dict)
    size: dict[TensorName, NDArray[np.int64]] = field(default_factory=dict)
    channel_lowest: dict[TensorName, Array] = field(default_factory=dict)
    channel_highest: dict[TensorName, Array] = field(default_factory=dict)
    channel_size: dict[TensorName, NDArray[np.int64]] = field(default_factory=dict)
    input_mean: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    output_mean: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    input_shape: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: dict[TensorName, tuple[TensorName, float, float]] = field(default_factory=dict)

    def tails(self, tensor: TensorName) -> tuple[Array, Array, NDArray[np.int64]]:
        """The lowest and highest values [N, k] of a tensor and its size [N]. KeyError if nothing is stored."""
        if tensor in self.lowest:
            return self.lowest[tensor], self.highest[tensor], self.size[tensor]
        stored, scale, offset = self.derived[tensor]
        low, high = (((table[stored].astype(np.float64) - offset) / scale).astype(np.float32) for table in (self.lowest, self.highest))
        return (low, high, self.size[stored]) if scale > 0 else (high, low, self.size[stored])


# ---------------------------------------------------------------------------------------------------------- collection


class _Output(NamedTuple):
    """One model output of the instrumented graph and what to do with its value for a sample."""

    order: tuple[int, int]  # place of its producer in the graph
    output: ov.Output
    store: Callable[[int, NDArray[Any]], None]


def collect(
    model: ov.Model,
    points: Points,
    outlier_probs: Sequence[float],
    channel_outlier_probs: Sequence[float],
    infer: Callable[[ov.Model], Iterable[list[NDArray[Any]]]],
    samples: int,
) -> Statistics:
    """Run the calibration samples once and reduce what they leave at `points`.

    points: of the graph read from `model`. outlier_probs, channel_outlier_probs: how far the tails of whole tensors and of
    channels must reach, as the probabilities of the quantiles to be taken from them. infer: runs the instrumented model in f32 over the samples and yields the
    outputs of each, in sample order. Raises UserError for a value that is not finite.
    """
    clone = model.clone()
    graph = read_graph(clone)
    statistics = Statistics(samples)
    outputs = list(_outputs(graph, _same_points(graph, points), outlier_probs, channel_outlier_probs, statistics))
    outputs.sort(key=lambda output: output.order)
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
    _finish(statistics, points)
    return statistics


def _same_points(graph: Graph, points: Points) -> Points:
    """The same points in another view of the same model."""

    def port(old: Port) -> Port:
        return Port(graph.by_name[old.node.name], old.index)

    def nodes(old: list[Node]) -> list[Node]:
        return [graph.by_name[node.name] for node in old]

    ports = ([port(old) for old in group] for group in (points.tensors, points.perchannel, points.aligned))
    return Points(*ports, nodes(points.inputs), nodes(points.outputs), points.derived)


def _outputs(
    graph: Graph, points: Points, outlier_probs: Sequence[float], channel_outlier_probs: Sequence[float], statistics: Statistics
) -> Iterator[_Output]:
    whole = _Tails(statistics.lowest, statistics.highest, statistics.size, tails_in_graph, extremes, math.prod)
    channel = _Tails(
        statistics.channel_lowest,
        statistics.channel_highest,
        statistics.channel_size,
        channel_tails_in_graph,
        channel_extremes,
        lambda shape: math.prod(shape) // shape[1],
    )
    for port in points.tensors:
        yield from _tails(port, whole, outlier_probs, statistics.samples)
    for port in points.perchannel:
        yield from _tails(port, channel, [*channel_outlier_probs, TAIL] if port in points.aligned else channel_outlier_probs, statistics.samples)
    for node in points.inputs:
        port = node.inputs[0]
        order = (port.node.order, port.index)
        yield _Output(order, _reduce(op.reduce_mean, port, keep=input_channel_axis(node)), _sum(statistics.input_mean, node.name))
        if -1 in (port.node.shapes[port.index] or (-1,)):
            yield _Output(order, op.shape_of(_output(port)).output(0), _shapes(statistics.input_shape, node.name))
        else:
            statistics.input_shape[node.name] = port.node.shapes[port.index] or ()
    for node in points.outputs:
        end = bias_add(node) or node
        port = Port(end, 0)
        yield _Output((end.order, 0), _reduce(op.reduce_mean, port, keep=output_channel_axis(node)), _sum(statistics.output_mean, node.name))


def _name(port: Port) -> TensorName:
    return TensorName(port.node.name, port.index)


def _output(port: Port) -> ov.Output:
    return port.node.operation.output(port.index)


def _reduce(reduction: Callable[..., ov.Node], port: Port, keep: int | None = None) -> ov.Output:
    """Reduce a tensor over all axes, or all but one."""
    shape = port.node.shapes[port.index]
    if shape is None:
        raise UserError(f"{port.node}: a tensor of unknown rank cannot be quantized; give model.input_shape")
    kept = None if keep is None else keep % max(len(shape), 1)
    axes = np.array([axis for axis in range(len(shape)) if axis != kept], dtype=np.int64)
    return reduction(_output(port), axes, False).output(0)


def _sum(table: dict[str, NDArray[np.float64]], name: str) -> Callable[[int, NDArray[Any]], None]:
    def store(position: int, value: NDArray[Any]) -> None:
        table[name] = table[name] + value if name in table else value.astype(np.float64)

    return store


def _shapes(table: dict[str, tuple[int, ...]], name: str) -> Callable[[int, NDArray[Any]], None]:
    counts: dict[tuple[int, ...], int] = {}

    def store(position: int, value: NDArray[Any]) -> None:
        shape = tuple(int(size) for size in value)
        counts[shape] = counts.get(shape, 0) + 1
        table[name] = max(counts, key=lambda shape: counts[shape])

    return store


class _Tails(NamedTuple):
    """Tails of whole tensors or of their channels: where they go and how they are found."""

    lowest: dict[TensorName, Array]
    highest: dict[TensorName, Array]
    size: dict[TensorName, NDArray[np.int64]]
    in_graph: Callable[[ov.Output, int], tuple[ov.Output, ov.Output]]
    of_array: Callable[..., Array]
    count: Callable[[tuple[int, ...]], int]  # values that a tail is taken of, from the tensor's shape


def _tails(port: Port, tails: _Tails, outlier_probs: Sequence[float], samples: int) -> Iterator[_Output]:
    """Outputs from which the lowest and highest values are taken: few where the shape is static, else the whole tensor."""
    name, order = _name(port), (port.node.order, port.index)
    shape = port.node.shapes[port.index]
    tails.size[name] = np.zeros(samples, np.int64)
    static = shape is not None and -1 not in shape
    count = tails.count(shape) if static and shape is not None else 0
    outputs = tails.in_graph(_output(port), tail_length(count, outlier_probs)) if static else (_output(port),) * 2

    def store(table: dict[TensorName, Array], upper: bool) -> Callable[[int, NDArray[Any]], None]:
        def take(position: int, value: NDArray[Any]) -> None:
            size = count or tails.count(value.shape)
            tail = tails.of_array(value, tail_length(size, outlier_probs), upper=upper)
            tails.size[name][position] = size
            stored = table.setdefault(name, np.empty((samples, *tail.shape[:-1], 0), np.float32))
            if stored.shape[-1] < tail.shape[-1]:
                missing = np.full((*stored.shape[:-1], tail.shape[-1] - stored.shape[-1]), np.nan, np.float32)
                table[name] = stored = np.concatenate([stored, missing], axis=-1)
            stored[position, ..., : tail.shape[-1]] = tail

        return take

    for output, table, upper in zip(outputs, (tails.lowest, tails.highest), (False, True), strict=True):
        yield _Output(order, output, store(table, upper))


def _finish(statistics: Statistics, points: Points) -> None:
    statistics.derived = {_name(port): (_name(source), scale, offset) for port, (source, scale, offset) in points.derived.items()}
    for table in (statistics.input_mean, statistics.output_mean):
        for name in table:
            table[name] = table[name] / statistics.samples
    for name, values in (*statistics.lowest.items(), *statistics.highest.items()):
        if not np.all(np.isfinite(values[:, 0])):
            sample = int(np.flatnonzero(~np.isfinite(values[:, 0]))[0])
            raise UserError(f"the model gives values that are not finite at {name.name} for calibration sample {sample}")


# ------------------------------------------------------------------------------------------------------------- storage


def save(statistics: Statistics, folder: Path) -> None:
    """Write statistics.npz (arrays) and index.json (which array is what)."""
    arrays: dict[str, NDArray[Any]] = {}
    entries: list[dict[str, Any]] = []

    def add(array: NDArray[Any], **what: Any) -> None:
        key = str(len(arrays))
        arrays[key] = array
        entries.append({**what, "array": key})

    for quantity in PER_TENSOR:
        for tensor, values in getattr(statistics, quantity).items():
            add(values, quantity=quantity, tensor=list(tensor))
    for quantity in ("input_mean", "output_mean"):
        for operation, values in getattr(statistics, quantity).items():
            add(values, quantity=quantity, operation=operation)
    index = {
        "format": FORMAT,
        "samples": statistics.samples,
        "entries": entries,
        "input_shape": {name: list(shape) for name, shape in statistics.input_shape.items()},
        "derived": [
            {"tensor": list(tensor), "from": list(source), "scale": scale, "offset": offset}
            for tensor, (source, scale, offset) in statistics.derived.items()
        ],
    }
    np.savez(folder / "statistics.npz", **arrays)  # type: ignore[arg-type]
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> Statistics:
    """Read what `save` wrote."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        with np.load(folder / "statistics.npz") as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: statistics cannot be read ({error}); run `dvc repro --force collect_statistics`") from None
    statistics = Statistics(index["samples"])
    for entry in index["entries"]:
        values, quantity = arrays[entry["array"]], entry["quantity"]
        key = entry["operation"] if "operation" in entry else TensorName(*entry["tensor"])
        getattr(statistics, quantity)[key] = values
    statistics.input_shape = {name: tuple(shape) for name, shape in index["input_shape"].items()}
    statistics.derived = {
        TensorName(*entry["tensor"]): (TensorName(*entry["from"]), entry["scale"], entry["offset"])
        for entry in index["derived"]
    }
    return statistics
