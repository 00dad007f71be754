"""One inference pass that hands out tensors from inside a model, sample by sample but many samples at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.errors import UserError
from stages.quantization.graph import Graph, read_graph

Store = Callable[[int, NDArray[Any]], None]  # keep the values [n, ...] of the n samples from a position on
Infer = Callable[[ov.Model], Iterable[Sequence[NDArray[Any]]]]

CHUNK = 64  # samples that are handed on together, so that NumPy works on many of them at once
CHUNK_BYTES = 2**25  # unless they are larger than this


class Wanted(NamedTuple):
    """A tensor of the graph and what to do with its values."""

    order: int  # place of its producer in the graph
    output: ov.Output
    store: Store


def run_pass(model: ov.Model, wanted_of: Callable[[Graph], Iterable[Wanted]], infer: Infer, samples: int) -> None:
    """Run a copy of `model` over the samples and store what is wanted of its graph.

    Everything of static shape leaves the graph as one long vector: Python then costs little per sample, however many
    tensors there are.

    Raises:
        UserError: `infer` yields another number of samples than `samples`.
    """
    clone = model.clone()
    # By place in the graph: in another order inference takes several times longer.
    wanted = sorted(wanted_of(read_graph(clone)), key=lambda item: item.order)
    if not wanted:
        return
    joined = [item for item in wanted if _joins(item.output)]
    alone = [item for item in wanted if not _joins(item.output)]
    vectors = [_flat(item.output) for item in joined]
    for result in list(clone.get_results()):
        clone.remove_result(result)
    results = [op.result(op.concat(vectors, 0))] if vectors else []
    clone.add_results([*results, *(op.result(item.output) for item in alone)])
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
            rows[position] = values[0]
        for item, value in zip(alone, values[len(results) :], strict=True):
            item.store(seen, value[None])
        seen += 1
        if position + 1 == len(rows):
            hand_on(seen - len(rows), len(rows))
    if rest := seen % len(rows):
        hand_on(seen - rest, rest)
    if seen != samples:
        raise UserError(f"{seen} calibration samples were read where {samples} were expected")


def _flat(output: ov.Output) -> ov.Output:
    return output if len(output.get_shape()) == 1 else op.reshape(output, np.array([-1]), False).output(0)


def _joins(output: ov.Output) -> bool:
    return bool(output.get_partial_shape().is_static) and output.get_element_type() == ov.Type.f32
