"""Run the calibration samples through the FP32 model once and store their statistics.

What is stored serves every preset, mode, estimator, aggregator, ignored scope and model type on the target device;
`quantize` and everything after it compute from it without another inference.

Examples:
    dvc repro collect_statistics     # with everything before it
    python -m stages.collect_statistics    # this stage alone, from what is in build/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.common import artifacts
from stages.configuration.schema import Config, Engine
from stages.stage import run

NAME = "collect_statistics"


def main(config: Config) -> dict[str, Any]:
    """Write build/collect_statistics."""
    import numpy as np
    import openvino as ov

    from stages.common.progress import progress
    from stages.configuration.target_device import read_target
    from stages.quantization.model.graph import read_graph
    from stages.quantization.statistics.collection import collect
    from stages.quantization.statistics.passes import BUDGET
    from stages.quantization.statistics.points import statistics_points
    from stages.quantization.statistics.store import empty_tensors, save
    from stages.runtime import engine
    from stages.runtime.samples import calibration_samples

    model = engine.read_artifact(artifacts.folder("prepare"))
    samples = calibration_samples(config)
    asked = config.collect_statistics
    # Always in f32: the other keys of `engine` change nothing here, and re-run nothing.
    settings = Engine(device=config.engine.device, requests=config.engine.requests, threads=config.engine.threads)
    points = statistics_points(read_graph(model), read_target(config.target_device), asked.perchannel, asked.pot_compatible)

    passes = 0
    # One sample at a time, and few of its tensors, or as many of both as are fastest.
    hint, requests, budget = ("LATENCY", 1, BUDGET) if asked.inplace_statistic else ("THROUGHPUT", 0, None)

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        nonlocal passes
        passes += 1
        compiled = engine.compile(instrumented, settings, "f32", hint=hint)
        return engine.infer(compiled, progress(samples, NAME, total=len(samples)), requests)

    statistics = collect(model, points, asked.outlier_probs, asked.channel_outlier_probs, infer, len(samples), budget)
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        artifacts.write_inputs(folder, "prepare")
        save(statistics, folder)
    empty = empty_tensors(statistics)
    found = {"empty": {"tensors": len(empty), "samples": max(empty.values())}} if empty else {}
    return {"samples": len(samples), "tensors": len(points.tensors), "passes": passes, **found}


if __name__ == "__main__":
    run(NAME, main)
