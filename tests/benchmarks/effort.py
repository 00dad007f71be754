"""What default quantization costs: this project, NNCF and plain inference of the same samples, side by side on four models.

    pip install -e '.[peers]'
    python -m tests.benchmarks.effort                     # all four models, 300 samples: about ten minutes on two cores
    python -m tests.benchmarks.effort --models resnet50 --samples 100 --repeat 1

CPU seconds are those of this process (user and system): statistics, quantization and bias correction together, with the
model in memory and the samples prepared. `quantile` is this project with the quantile estimator. The sides take turns, so
that another load on the machine meets all of them, and medians count.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openvino as ov
import yaml

from stages.configuration import schema
from stages.configuration.target_device import read_target
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.runtime import engine
from stages.runtime.datasets import Sample, TextLines, model_inputs
from stages.runtime.datasets.binding import checked
from stages.runtime.sources import locate, read
from tests.benchmarks.networks import TOKENS, VOCABULARY, encoder, mobilenet_v2, resnet50

ROOT = Path(__file__).parents[2]
ENGINE = schema.Engine()
# POT's quantile estimator cuts off one value in ten thousand on either side.
QUANTILE = 1e-4


class Task(NamedTuple):
    """A model and its samples."""

    model: ov.Model
    samples: Sequence[Sample]
    model_type: str = "none"


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3, help="how often each side is timed")
    arguments = parser.parse_args()
    print(f"CPU seconds, {arguments.samples} samples, median of {arguments.repeat}")
    print("| model | plain | ours | quantile | NNCF | ours / NNCF | ours / plain | quantile / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        task = TASKS[name](arguments.samples)
        seconds = _measured(task, arguments.sides, arguments.repeat)
        cells = [f"{seconds[side]:.1f}" if side in seconds else "" for side in SIDES]
        ratios = [
            f"{seconds[over] / seconds[under]:.2f}" if over in seconds and under in seconds else ""
            for over, under in (("ours", "nncf"), ("ours", "plain"), ("quantile", "ours"))
        ]
        print(f"| {' | '.join([name, *cells, *ratios])} |", flush=True)


def _measured(task: Task, sides: Sequence[str], repeat: int) -> dict[str, float]:
    """Median CPU seconds per side."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeat):
        for side in sides:
            started = time.process_time()
            SIDES[side](task)
            seconds[side].append(time.process_time() - started)
    return {side: statistics.median(values) for side, values in seconds.items()}


# ---------------------------------------------------------------------------------------------------------------- sides


def _plain(task: Task) -> None:
    for _ in engine.infer(engine.compile(task.model, ENGINE, "f32"), task.samples):
        pass


def _ours(task: Task, estimator: schema.RangeEstimator | None = None) -> None:
    target = read_target(schema.TargetDevice(**yaml.safe_load((ROOT / "conf/target_device/any.yaml").read_text())))
    graph = read_graph(task.model)

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        return engine.infer(engine.compile(instrumented, ENGINE, "f32"), task.samples)

    channel_quantiles = [QUANTILE] if estimator else []
    collected = collect(task.model, statistics_points(graph, target), [QUANTILE], channel_quantiles, infer, len(task.samples))
    config = schema.Quantization(model_type=task.model_type)
    if estimator:
        config = dataclasses.replace(config, range_estimator=estimator)
    build(task.model, collected, make_plan(graph, target, config, collected), schema.BiasCorrection())


def _quantile(task: Task) -> None:
    _ours(task, schema.RangeEstimator(preset="quantile"))


def _nncf(task: Task) -> None:
    import nncf

    nncf.set_log_level("ERROR")
    dataset = nncf.Dataset(task.samples, lambda sample: next(iter(sample.inputs.values())))
    model_type = nncf.ModelType.TRANSFORMER if task.model_type == "transformer" else None
    nncf.quantize(task.model, dataset, subset_size=len(task.samples), model_type=model_type)


SIDES: dict[str, Callable[[Task], None]] = {"plain": _plain, "ours": _ours, "quantile": _quantile, "nncf": _nncf}

# ---------------------------------------------------------------------------------------------------------------- tasks


def _images(model: ov.Model, count: int) -> Task:
    generator = np.random.default_rng(0)
    # Smooth pictures: noise of few pixels, enlarged, so that neighbours resemble each other as in photographs.
    pictures = (np.kron(generator.normal(size=(1, 3, 28, 28)), np.ones((8, 8))).astype(np.float32) for _ in range(count))
    return Task(model, [Sample({"input": picture}) for picture in pictures])


def _tokens(count: int) -> Task:
    generator = np.random.default_rng(0)
    numbers = (generator.integers(0, VOCABULARY, (1, TOKENS)) for _ in range(count))
    return Task(encoder(), [Sample({"input": sample}) for sample in numbers])


def _example(count: int) -> Task:
    values = yaml.safe_load((ROOT / "conf/model/ppocrv4_rec.yaml").read_text())
    config = schema.Model(**{**values, "package": schema.Package(**values["package"])})
    model = read(locate(config), config.input_shape)
    lines, inputs = TextLines(count=count, seed=1), model_inputs(model)
    return Task(model, [checked(lines[index], inputs, str(index)) for index in range(count)])


TASKS: dict[str, Callable[[int], Task]] = {
    "mobilenet_v2": lambda count: _images(mobilenet_v2(), count),
    "resnet50": lambda count: _images(resnet50(), count),
    "encoder": _tokens,
    "ppocrv4_rec": _example,
}

if __name__ == "__main__":
    main()
