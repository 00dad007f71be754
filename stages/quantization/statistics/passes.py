"""Inference passes that hand out tensors from inside a model: one, or several of few tensors each where memory is short."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.quantization.model.graph import Graph, read_graph

Store = Callable[[int, NDArray[Any]], None]  # keep the values [n, ...] of the n samples from a position on
Infer = Callable[[ov.Model], Iterable[Sequence[NDArray[Any]]]]

CHUNK = 64  # samples that are handed on together, so that NumPy works on many of them at once
CHUNK_BYTES = 2**25  # unless they are larger than this
JOINED = 16  # tensors that leave the model as one vector: with all in one OpenVINO takes a fifth longer to compile it
FEW = 8  # integers that are worth comparing with others
BUDGET = 2**26  # bytes of a sample that may leave the model at once where memory is short


class TensorRequest(NamedTuple):
    """A tensor of the graph and what to do with its values."""

    order: int  # place of its producer in the graph
    output: ov.Output
    store: Store


def run_passes(
    model: ov.Model, wanted_of: Callable[[Graph], Iterable[TensorRequest]], infer: Infer, samples: int, budget: int | None = None
) -> None:
    """Run a copy of `model` over the samples and store what is wanted of its graph.

    Args:
        model: Stays as it is.
        wanted_of: What is wanted of a graph read from the copy; the same again when it is asked again.
        infer: Runs a model over the samples and yields the outputs of each, in sample order.
        samples: How many there are.
        budget: Bytes that a sample's wanted tensors take at most in one pass; a tensor that is larger has a pass of its own.
            None: everything in one pass.

    Raises:
        UserError: `infer` yields another number of samples than `samples`.
    """
    if budget is None:
        _run_pass(model, wanted_of, infer, samples, None)
        return
    for members in _groups(_sizes(model, wanted_of, infer, samples), budget):
        _run_pass(model, wanted_of, infer, samples, members)


def _run_pass(
    model: ov.Model, wanted_of: Callable[[Graph], Iterable[TensorRequest]], infer: Infer, samples: int, members: range | None
) -> None:
    """Store what is wanted, or the `members` of it.

    Everything of static shape leaves the graph in few long vectors: Python then costs little per sample, however many
    tensors there are.
    """
    clone, wanted = _instrumented(model, wanted_of)
    chosen = [members is None or place in members for place in range(len(wanted))]
    if not any(chosen):
        return
    joined = [item for item, is_chosen in zip(wanted, chosen, strict=True) if is_chosen and _joins(item.output)]
    vectors = [op.concat([_flat(item.output) for item in joined[start : start + JOINED]], 0) for start in range(0, len(joined), JOINED)]
    results, alone = [op.result(vector) for vector in vectors], []
    for item, is_chosen in zip(wanted, chosen, strict=True):
        if not is_chosen:
            # It is read all the same: OpenVINO then fuses the same operations in every pass, and rounds alike.
            results.append(op.result(_largest(item.output)))
        elif not _joins(item.output):
            alone.append((len(results), item))
            results.append(op.result(item.output))
    clone.add_results(results)
    _share_numbers(clone)
    clone.validate_nodes_and_infer_types()
    shapes = [tuple(item.output.get_shape()) for item in joined]
    ends = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    total = int(ends[-1]) if joined else 0
    rows = np.empty((max(1, min(CHUNK, CHUNK_BYTES // (4 * max(total, 1)))), total), np.float32)

    def hand_on(start: int, count: int) -> None:
        for item, shape, values in zip(joined, shapes, np.split(rows[:count], ends[:-1], axis=1) if joined else (), strict=True):
            item.store(start, values.reshape(count, *shape))

    seen = 0
    for values in infer(clone):
        position = seen % len(rows)
        if joined:
            np.concatenate(values[: len(vectors)], out=rows[position])
        for place, item in alone:
            item.store(seen, values[place][None])
        seen += 1
        if position + 1 == len(rows):
            hand_on(seen - len(rows), len(rows))
    if rest := seen % len(rows):
        hand_on(seen - rest, rest)
    if seen != samples:
        raise UserError(f"{seen} calibration samples were read where {samples} were expected")


def _instrumented(model: ov.Model, wanted_of: Callable[[Graph], Iterable[TensorRequest]]) -> tuple[ov.Model, list[TensorRequest]]:
    """A copy of `model` without results, and what is wanted of it."""
    clone = model.clone()
    # By place in the graph: in another order inference takes several times longer.
    wanted = sorted(wanted_of(read_graph(clone)), key=lambda item: item.order)
    for result in list(clone.get_results()):
        clone.remove_result(result)
    return clone, wanted


def _share_numbers(model: ov.Model) -> None:
    """Make equal integers, such as axes, one constant: the search for tails has hundreds, and without them models compile faster."""
    known: dict[tuple[str, tuple[int, ...], bytes], ov.Node] = {}
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or not node.get_output_element_type(0).is_integral() or math.prod(node.shape) > FEW:
            continue
        values = node.data
        first = known.setdefault((str(values.dtype), values.shape, values.tobytes()), node)
        if first is not node:
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(first.output(0))


def _sizes(model: ov.Model, wanted_of: Callable[[Graph], Iterable[TensorRequest]], infer: Infer, samples: int) -> list[int]:
    """Bytes that each wanted tensor takes, of the largest sample. Where shapes are dynamic that takes a pass of its own."""
    clone, wanted = _instrumented(model, wanted_of)
    shapes = [
        list(item.output.get_partial_shape().get_min_shape()) if item.output.get_partial_shape().is_static else None for item in wanted
    ]
    largest = [0 if shape is None else math.prod(shape) for shape in shapes]
    dynamic = [place for place, shape in enumerate(shapes) if shape is None]
    if dynamic:
        clone.add_results([op.result(op.shape_of(wanted[place].output)) for place in dynamic])
        clone.validate_nodes_and_infer_types()
        for values in infer(clone):
            for place, shape in zip(dynamic, values, strict=True):
                largest[place] = max(largest[place], math.prod(map(int, shape)))
    return [count * item.output.get_element_type().size for count, item in zip(largest, wanted, strict=True)]


def _groups(sizes: Sequence[int], budget: int) -> Iterator[range]:
    """Neighbours in the graph, as many as fit in the budget."""
    start, total = 0, 0
    for place, size in enumerate(sizes):
        if total + size > budget and place > start:
            yield range(start, place)
            start, total = place, 0
        total += size
    if sizes:
        yield range(start, len(sizes))


def _largest(output: ov.Output) -> ov.Output:
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic:
        output, rank = op.reshape(output, np.array([-1]), False).output(0), 1
    else:
        rank = shape.rank.get_length()
    return op.reduce_max(output, np.arange(rank), False).output(0)


def _flat(output: ov.Output) -> ov.Output:
    return output if len(output.get_shape()) == 1 else op.reshape(output, np.array([-1]), False).output(0)


def _joins(output: ov.Output) -> bool:
    return bool(output.get_partial_shape().is_static) and output.get_element_type() == ov.Type.f32
