"""Default quantization of the bundled example: this project against NNCF, in one process and on the same samples.

    pip install -e '.[peers]'
    python -m tests.benchmarks.default_quantization                  # CPU seconds and accuracy, both presets
    python -m tests.benchmarks.default_quantization --presets mixed --calibration 100 --validation 200

CPU seconds are those of this process (user and system): statistics, quantization and bias correction together, with the
model already in memory and the samples already rendered. The last column of the first line is what plain asynchronous
inference of the same samples costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml

from stages.configuration import schema
from stages.configuration.target_device import read_target
from stages.measurement.latency import latency, speed_up
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.runtime import engine
from stages.runtime.datasets import Sample, TextLines, model_inputs
from stages.runtime.datasets.binding import checked
from stages.runtime.metrics import ExactMatch
from stages.runtime.sources import locate, read

ROOT = Path(__file__).parents[2]
ENGINE = schema.Engine()


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["performance", "mixed"], choices=["performance", "mixed"])
    parser.add_argument("--calibration", type=int, default=300, help="calibration samples")
    parser.add_argument("--validation", type=int, default=1000, help="validation samples; 0 leaves accuracy out")
    parser.add_argument("--repeat", type=int, default=3, help="how often each side is timed; medians count")
    arguments = parser.parse_args()

    model = _example()
    calibration = _lines(model, arguments.calibration, seed=1)
    validation = _lines(model, arguments.validation, seed=2)

    plain = _median(lambda: _drain(engine.infer(engine.compile(model, ENGINE), calibration)), arguments.repeat)[0]
    print(f"{arguments.calibration} calibration samples; plain asynchronous f32 inference: {plain:.1f} CPU s")
    for preset in arguments.presets:
        ours_seconds, ours = _median(partial(_ours, model, calibration, preset), arguments.repeat)
        theirs_seconds, theirs = _median(partial(_nncf, model, calibration, preset), arguments.repeat)
        print(
            f"{preset}: ours {ours_seconds:.1f} CPU s, NNCF {theirs_seconds:.1f} CPU s, ratio {ours_seconds / theirs_seconds:.2f};"
            f" ours over plain inference {ours_seconds / plain:.2f}, NNCF over plain inference {theirs_seconds / plain:.2f}",
            flush=True,
        )
        if validation:
            _print_accuracy({"fp32": model, "ours": ours, "nncf": theirs}, validation)
            _print_latency(ours, theirs, validation[0])


def _example() -> ov.Model:
    values = yaml.safe_load((ROOT / "conf/model/ppocrv4_rec.yaml").read_text())
    config = schema.Model(**{**values, "package": schema.Package(**values["package"])})
    return read(locate(config), config.input_shape)


def _lines(model: ov.Model, count: int, seed: int) -> list[Sample]:
    lines, inputs = TextLines(count=max(count, 1), seed=seed), model_inputs(model)
    return [checked(lines[index], inputs, str(index)) for index in range(count)]


def _median(work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Median CPU seconds of `work`, and what it returned last."""
    seconds, result = [], None
    for _ in range(repeat):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


def _drain(outputs: Iterator[object]) -> None:
    for _ in outputs:
        pass


def _ours(model: ov.Model, samples: Sequence[Sample], preset: str) -> ov.Model:
    target = read_target(schema.TargetDevice(**yaml.safe_load((ROOT / "conf/target_device/any.yaml").read_text())))
    graph = read_graph(model)

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        return engine.infer(engine.compile(instrumented, ENGINE), samples)

    collected = collect(model, statistics_points(graph, target), [1e-4], [], infer, len(samples))
    plan = make_plan(graph, target, schema.Quantization(preset=preset))
    return build(model, collected, plan, schema.BiasCorrection())[0]


def _nncf(model: ov.Model, samples: Sequence[Sample], preset: str) -> ov.Model:
    import nncf

    nncf.set_log_level("ERROR")
    dataset = nncf.Dataset(samples, lambda sample: next(iter(sample.inputs.values())))
    return nncf.quantize(model, dataset, preset=nncf.QuantizationPreset(preset), subset_size=len(samples))


def _print_accuracy(models: dict[str, ov.Model], samples: Sequence[Sample]) -> None:
    metric = ExactMatch(ignore_space=True)
    metric.bind(models["fp32"])
    compiled = {name: engine.compile(model, ENGINE, "f32") for name, model in models.items()}
    values = engine.evaluate_metrics(compiled, samples, {"exact_match": metric})
    print("  exact match: " + ", ".join(f"{name} {100 * metric.value(rows['exact_match']):.1f} %" for name, rows in values.items()))


def _print_latency(ours: ov.Model, theirs: ov.Model, sample: Sample) -> None:
    models = {"ours": ours, "nncf": theirs}
    compiled = {name: engine.compile(model, ENGINE, "default", hint="LATENCY") for name, model in models.items()}
    times = latency(compiled, dict(enumerate(sample.inputs.values())), seconds=10)
    medians = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    ratio = speed_up(times["nncf"], times["ours"])
    print(f"  latency: ours {medians['ours']:.2f} ms, NNCF {medians['nncf']:.2f} ms; NNCF / ours {ratio.median:.2f}", end=" ")
    print(f"[{ratio.low:.2f}, {ratio.high:.2f}]")


if __name__ == "__main__":
    main()
