"""Passes of few tensors: which tensors share one, by their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.quantization.model.graph import Graph
from stages.quantization.statistics.passes import TensorRequest, run_passes
from tests.quantization.quantizing import infer
from tests.quantization.small import matmul, model, parameter, random

LENGTHS = (2, 5, 3)  # of the dynamic size, by sample


def widths(dynamic: bool) -> ov.Model:
    """[n, 8] -> wide [n, 32] -> middle [n, 8] -> narrow [n, 1]; n is dynamic, or 5."""
    x = parameter((-1 if dynamic else 5, 8))
    layers = [matmul(x, random(8, 32), "wide")]
    for before, after, name in ((32, 8, "middle"), (8, 1, "narrow")):
        layers.append(matmul(layers[-1], random(before, after), name))
    return model(layers[-1], x)


def shared(dynamic: bool, budget: int | None) -> list[list[str]]:
    """The names of what each pass that stores something stores."""
    tested, passes = widths(dynamic), list[list[str]]()
    samples = [random(length if dynamic else 5, 8, seed=length) for length in LENGTHS]

    def wanted(graph: Graph) -> Iterator[TensorRequest]:
        for name in ("narrow", "wide", "middle"):  # in another order than in the graph
            node = graph.by_name[name]

            def store(position: int, values: NDArray[Any], name: str = name) -> None:
                if name not in passes[-1]:
                    passes[-1].append(name)

            yield TensorRequest(node.order, node.operation.output(0), store)

    def run(instrumented: ov.Model) -> Iterator[Sequence[NDArray[Any]]]:
        passes.append([])
        return infer(instrumented, samples)

    run_passes(tested, wanted, run, len(samples), budget)
    return [stored for stored in passes if stored]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (None, [["wide", "middle", "narrow"]]),
        # The largest sample has 5 rows: 640, 160 and 20 bytes.
        (820, [["wide", "middle", "narrow"]]),
        (819, [["wide", "middle"], ["narrow"]]),
        (799, [["wide"], ["middle", "narrow"]]),
        (180, [["wide"], ["middle", "narrow"]]),
        (179, [["wide"], ["middle"], ["narrow"]]),
    ],
)
def test_neighbours_share_a_pass_as_far_as_their_largest_sample_fits(dynamic: bool, budget: int | None, expected: list[list[str]]) -> None:
    assert shared(dynamic, budget) == expected


def test_another_number_of_samples_is_refused() -> None:
    def wanted(graph: Graph) -> Iterator[TensorRequest]:
        node = graph.by_name["narrow"]
        yield TensorRequest(node.order, node.operation.output(0), lambda position, values: None)

    with pytest.raises(UserError, match="2 calibration samples were read where 3 were expected"):
        run_passes(widths(False), wanted, lambda instrumented: infer(instrumented, [np.ones((5, 8), np.float32)] * 2), 3)
