"""What statistics of pictures of many sizes cost in memory, in a process of its own.

    python -m tests.quantization.statistics_memory 0    # everything at once
    python -m tests.quantization.statistics_memory 1    # collect_statistics.inplace_statistic

Prints the megabytes that collecting added to the peak, the number of passes and a hash of the statistics.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.passes import BUDGET
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import save
from stages.runtime import engine
from stages.runtime.datasets import Sample
from tests.quantization.reference_runs import target
from tests.quantization.small import convolution, model, named, parameter, random

LAYERS, CHANNELS, SIZES = 24, 16, (352, 416, 384, 400, 368, 416)


def main(inplace: bool) -> None:
    """Collect, and print what it took."""
    x = parameter((1, 3, -1, -1))
    y: ov.Node = x
    for layer in range(LAYERS):
        weights = random(CHANNELS, y.get_output_partial_shape(0)[1].get_length(), 1, 1, seed=layer)
        y = named(op.relu(convolution(y, weights, f"conv{layer}", bias=random(CHANNELS))), f"relu{layer}")
    tested = model(y, x)
    generator = np.random.default_rng(0)
    samples = [Sample({"x": generator.normal(size=(1, 3, size, size)).astype(np.float32)}) for size in SIZES]
    hint, requests, budget = ("LATENCY", 1, BUDGET) if inplace else ("THROUGHPUT", 0, None)
    passes = 0

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        nonlocal passes
        passes += 1
        return engine.infer(engine.compile(instrumented, schema.Engine(), hint=hint), samples, requests)

    points = statistics_points(read_graph(tested), target())
    next(iter(engine.infer(engine.compile(tested, schema.Engine(), hint="LATENCY"), samples[:1], 1)))  # what any inference takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statistics = collect(tested, points, [1e-4], [], infer, len(samples), budget)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        save(statistics, Path(folder))
        written = b"".join((Path(folder) / name).read_bytes() for name in ("statistics.npz", "index.json"))
    print((peak - before) // 1024, passes, hashlib.sha256(written).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1] == "1")
