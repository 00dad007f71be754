"""What a user waits for every day: a cold pipeline, a `dvc repro` with nothing to do, sweeps of presets.

    python -m tests.benchmarks.everyday                                     # about three minutes
    python -m tests.benchmarks.everyday --model resnet50                    # about ten: ResNet50 on 1300 photographs
    python -m tests.benchmarks.everyday --presets performance,mixed

Everything runs in fresh copies of the project with caches of their own. Seconds are wall time, and CPU time (user and system)
of all processes; on a machine with other work trust CPU time, and ratios more than either. A sweep's ratio is to one cold
pipeline: presets differ in quantize and what follows, so statistics, the imported model and FP32's accuracy are shared.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import openvino as ov
from PIL import Image

from stages.common import artifacts
from tests.benchmarks.networks import resnet50
from tests.project import Outcome, Project, copy_project
from tests.sweeping import latest, sweep

AGAIN = 5  # repeats of what takes a second
CALIBRATION, VALIDATION = 300, 1000  # as many as the example has


class Cost(NamedTuple):
    """Seconds of wall time, and of CPU time of all processes."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        """`12.3 s (CPU 20.1 s)`."""
        return f"{self.wall:6.1f} s (CPU {self.cpu:5.1f} s)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example", choices=list(MODELS))
    parser.add_argument("--presets", default="performance,mixed,accuracy", help="of the sweep")
    arguments = parser.parse_args()
    presets = arguments.presets.count(",") + 1
    with tempfile.TemporaryDirectory() as folder:
        alone, swept = (copy_project(Path(folder) / name) for name in ("alone", "swept"))
        for project in (alone, swept):
            MODELS[arguments.model](project)
        cold = cost(partial(alone.repro, timeout=900))
        print(f"cold pipeline:                     {cold}")
        print(f"  by stage: {', '.join(_stages(alone.root))}", flush=True)
        nothing = [cost(alone.repro) for _ in range(AGAIN)]
        idle = Cost(median(each.wall for each in nothing), median(each.cpu for each in nothing))
        print(f"`dvc repro` with nothing to do:    {idle}   median of {AGAIN}", flush=True)
        override = f"quantization.preset={arguments.presets}"
        first = cost(partial(sweep, swept, override))
        ratio = f"{first.wall / cold.wall:.2f} (CPU {first.cpu / cold.cpu:.2f})"
        print(f"sweep of {presets} presets:                {first}   {ratio} cold pipelines")
        for number in range(presets):
            print(f"  job {number} by stage: {', '.join(_stages(latest(swept) / str(number)))}")
        again = cost(partial(sweep, swept, override))
        print(f"the same sweep again:              {again}   {again.wall / presets:.1f} s per job")


def _example(project: Project) -> None:
    """As it is."""


def _resnet50(project: Project) -> None:
    """With random weights, on pictures like photographs in files like those; their classes mean nothing."""
    (project.root / "files").mkdir()
    ov.save_model(resnet50(), project.root / "files" / "net.xml", compress_to_fp16=False)
    generator = np.random.default_rng(0)
    for number in range(CALIBRATION + VALIDATION):
        folder = project.root / "files" / "pictures" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 256), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    data = f"data: {{calibration: {{path: files/pictures}}, validation: null, calibration_size: {CALIBRATION}}}"
    project.params(f"model: {{name: resnet50, path: files/net.xml}}\n{data}", "model: local", "data: image_folder", "metric: accuracy")


MODELS: dict[str, Callable[[Project], None]] = {"example": _example, "resnet50": _resnet50}


def cost(work: Callable[[], Outcome]) -> Cost:
    """What `work`, which runs commands and has to succeed, costs."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    outcome = work()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if outcome.code:
        sys.exit(outcome.output)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _stages(project: Path) -> Iterator[str]:
    """`evaluate 12.1 (CPU 20.3)` for each stage, from its record: also of those that came from the cache."""
    for path in sorted((project / artifacts.RECORDS).glob("*.json"), key=lambda path: path.stat().st_mtime):
        record = artifacts.read_json(path)
        yield f"{record['stage']} {record['seconds']:.1f} (CPU {record['cpu_seconds']:.1f})"


if __name__ == "__main__":
    main()
