"""Default quantization of every model of the ONNX project's own backend test data: none may crash.

    pip install -e '.[peers]'
    python -m tests.benchmarks.onnx_backend                     # everything, both presets
    python -m tests.benchmarks.onnx_backend --only conv --verbose

The data comes with the package `onnx`: node and simple model tests, and models exported from PyTorch. A model of several inputs
is taken a second time with all inputs but the first as constants, the way in which trained models have their weights.

Every model runs in a child process, so that a crash or hang of native code is counted and named like any other. What the
FP32 model cannot do in OpenVINO is no fault of quantization and counted apart. The exit code is 1 if anything crashed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import openvino as ov
import yaml

from stages.common.errors import UserError
from stages.common.progress import progress
from stages.configuration import schema
from stages.configuration.target_device import read_target
from stages.quantization.build import build, save_model
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import plan_from_json, plan_to_json
from stages.quantization.planning import make_plan, require_something_to_quantize
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import load, save
from stages.runtime import engine
from stages.runtime.datasets import Sample, model_inputs
from stages.runtime.datasets.binding import checked
from stages.runtime.sources import locate, read

ROOT = Path(__file__).parents[2]
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
PRESETS = ("performance", "accuracy")
TIMEOUT = 120  # seconds for one model

QUANTIZED, NOTHING, REFUSED, UNSUPPORTED, CRASHED = (
    "quantized",
    "nothing to quantize",
    "refused",
    "not supported by OpenVINO",
    "crashed",
)
FP32_WORKS = "FP32 works"  # what a child says before quantization begins


@dataclass(frozen=True)
class Case:
    """A serialized ONNX model and the inputs that its test has for it, by name."""

    name: str
    model: bytes
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What became of a model: one of the results above, and why in a line."""

    name: str
    result: str
    reason: str = ""
    details: str = ""  # traceback


# --------------------------------------------------------------------------------------------------------------- cases


def cases(kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """All tests of the given kinds, and those with weights as inputs a second time with constants for them."""
    import onnx
    from onnx.backend.test.loader import load_model_tests

    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tests compute infinities on purpose
            tests = load_model_tests(kind=kind)
        for test in sorted(tests, key=lambda test: str(test.name)):
            folder = None if test.model_dir is None else Path(test.model_dir)
            model = test.model if folder is None else onnx.load(str(folder / "model.onnx"))
            initialized = {tensor.name for tensor in model.graph.initializer}
            names = [entry.name for entry in model.graph.input if entry.name not in initialized]
            if folder is None:
                values = [inputs for inputs, _ in test.data_sets or []]
            else:
                values = [_stored(data, len(names)) for data in sorted(folder.glob("test_data_set_*"))]
            samples = [dict(zip(names, inputs, strict=False)) for inputs in values]
            yield Case(f"{kind}/{test.name}", model.SerializeToString(), samples)
            if len(names) > 1 and samples and all(isinstance(value, np.ndarray) for value in samples[0].values()):
                yield _frozen(f"{kind}/{test.name} with constants", model, names, samples)


def _stored(folder: Path, count: int) -> list[Any]:
    """The inputs of a test on disk; those that are no tensors are left out."""
    import onnx
    from onnx import numpy_helper

    tensors = []
    for index in range(count):
        path = folder / f"input_{index}.pb"
        try:
            tensors.append(numpy_helper.to_array(onnx.load_tensor(str(path))))
        except Exception:  # a sequence or a map, which protobuf reads as a damaged tensor
            return []
    return tensors


def _frozen(name: str, model: Any, names: list[str], samples: list[dict[str, Any]]) -> Case:
    """The same model with the first sample's values for all inputs but the first."""
    import onnx
    from onnx import numpy_helper

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    constants = [name for name in names[1:] if name in samples[0]]
    twin.graph.initializer.extend(numpy_helper.from_array(samples[0][name], name) for name in constants)
    kept = [entry for entry in twin.graph.input if entry.name not in constants]
    del twin.graph.input[:]
    twin.graph.input.extend(kept)
    return Case(name, twin.SerializeToString(), [{key: sample[key] for key in names[:1]} for sample in samples])


# ----------------------------------------------------------------------------------------------- one model, in a child


def run_case(case: Case, say: Any = lambda message: None) -> Outcome:
    """Take one model the whole way. `say` is told when the FP32 model has run."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, samples, expected = _fp32(case, Path(folder))
        except Exception as error:  # whatever the front end or a plugin raises
            return Outcome(case.name, UNSUPPORTED, engine.last_line(error))
        say(FP32_WORKS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # arithmetic of ours on what is no number
                return Outcome(case.name, QUANTIZED, _quantize(model, samples, expected, Path(folder)))
        except UserError as error:
            line = str(error)
            if "\n" in line:
                return Outcome(case.name, CRASHED, f"a message of several lines: {line!r}")
            return Outcome(case.name, NOTHING if NOTHING in line else REFUSED, line)
        except Exception as error:
            return Outcome(case.name, CRASHED, f"{type(error).__name__}: {engine.last_line(error)}", traceback.format_exc())


def _fp32(case: Case, folder: Path) -> tuple[ov.Model, list[Sample], list[list[np.ndarray]]]:
    """The model as `prepare` leaves it, samples for it, and what it computes from them."""
    (folder / "source.onnx").write_bytes(case.model)
    imported = read(locate(schema.Model(path=str(folder / "source.onnx")), folder))
    ov.save_model(imported, folder / "fp32.xml", compress_to_fp16=False)
    model = engine.core().read_model(folder / "fp32.xml")
    inputs = model_inputs(model)
    given = [sample for sample in case.samples if all(set(entry.aliases) & set(sample) for entry in inputs)]
    if given:
        named = [{entry.name: sample[next(a for a in entry.aliases if a in sample)] for entry in inputs} for sample in given]
    else:
        generator = np.random.default_rng(0)
        shapes = {entry.name: [size if size > 0 else 2 for size in entry.shape or (2, 2)] for entry in inputs}
        named = [{name: generator.uniform(0, 1, shape) for name, shape in shapes.items()}]
        types = {entry.name: entry.dtype for entry in inputs}
        named = [{name: value.astype(types[name]) for name, value in named[0].items()}]
    samples = [checked({name: _finite(value) for name, value in sample.items()}, inputs, case.name) for sample in named]
    return model, samples, _outputs(model, samples)


def _finite(value: Any) -> Any:
    array = np.asarray(value)
    return np.nan_to_num(array, posinf=1e3, neginf=-1e3) if np.issubdtype(array.dtype, np.floating) else array


def _outputs(model: ov.Model, samples: list[Sample]) -> list[list[np.ndarray]]:
    return [[value.copy() for value in values] for values in engine.infer(_compiled(model), samples)]


def _compiled(model: ov.Model) -> ov.CompiledModel:
    # Not by engine.compile, which makes a UserError of a model that OpenVINO refuses.
    properties = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    return engine.core().compile_model(model, "CPU", properties)


def _quantize(model: ov.Model, samples: list[Sample], expected: list[list[np.ndarray]], folder: Path) -> str:
    """Collect, plan, build, store, read back and run, once per preset. In a line how many quantizers there are."""
    target = read_target(schema.TargetDevice(**yaml.safe_load((ROOT / "conf/target_device/any.yaml").read_text())))
    graph = read_graph(model)
    statistics = collect(
        model,
        statistics_points(graph, target),
        [1e-4],
        [],
        lambda instrumented: engine.infer(_compiled(instrumented), samples),
        len(samples),
    )
    save(statistics, folder)
    counts = []
    for preset in PRESETS:
        plan = make_plan(graph, target, schema.Quantization(preset=preset), statistics)
        require_something_to_quantize(plan)
        plan = plan_from_json(json.loads(json.dumps(plan_to_json(plan))))
        quantized, _ = build(model, load(folder), plan, schema.BiasCorrection())
        save_model(quantized, folder)
        _require_alike(_outputs(engine.core().read_model(folder / "model.xml"), samples), expected)
        counts.append(len(plan.quantizers))
    return f"{counts[0]} quantizers"


def _require_alike(outputs: list[list[np.ndarray]], expected: list[list[np.ndarray]]) -> None:
    """AssertionError unless outputs have the shapes of the FP32 model's, and finite values where those have."""
    for ours, theirs in zip(outputs, expected, strict=True):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.shape != other.shape:
                raise AssertionError(f"output {index} has shape {list(one.shape)} instead of {list(other.shape)}")
            if np.issubdtype(one.dtype, np.floating) and np.any(np.isfinite(other) & ~np.isfinite(one)):
                raise AssertionError(f"output {index} has values that are not finite where FP32's are")


def _serve(connection: Connection) -> None:
    """What a child does until it is told to stop."""
    sys.argv = sys.argv[:1]  # OpenVINO's converter looks for options of its own in it, --verbose among them
    while (case := connection.recv()) is not None:
        connection.send(run_case(case, connection.send))


# ---------------------------------------------------------------------------------------------------------- all models


class _Child:
    """A process that runs one case after the other, and is replaced when it dies or hangs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, case: Case) -> Outcome:
        """The outcome of a case; the child is of no use afterwards if it is not `alive`."""
        result, deadline = UNSUPPORTED, time.monotonic() + TIMEOUT
        try:
            self.connection.send(case)
            while self.connection.poll(max(0.0, deadline - time.monotonic())):
                message = self.connection.recv()
                if isinstance(message, Outcome):
                    return message
                result = CRASHED
            reason = f"no answer within {TIMEOUT} seconds"
        except (EOFError, ConnectionError):
            self.process.join(5)
            reason = f"the process died with exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        return Outcome(case.name, result, reason)

    @property
    def alive(self) -> bool:
        """Whether it can take another case."""
        return self.process.is_alive()


def run_all(todo: list[Case], jobs: int) -> Iterator[Outcome]:
    """The outcomes in the order of the cases."""
    mine, children = local(), []

    def one(case: Case) -> Outcome:
        if getattr(mine, "child", None) is None or not mine.child.alive:
            mine.child = _Child()
            children.append(mine.child)
        return mine.child.run(case)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, todo)
    for child in children:
        if child.alive:
            child.connection.send(None)
            child.process.join()


def main() -> int:
    """Run all models and print the tally."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="take only so many models")
    parser.add_argument("--only", default="", help="take only models with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="child processes")
    parser.add_argument("--verbose", action="store_true", help="print every model, and the traceback of crashes")
    arguments = parser.parse_args()

    todo = [case for case in cases() if arguments.only in case.name][: arguments.limit]
    outcomes = []
    for outcome in progress(run_all(todo, arguments.jobs), "onnx_backend", total=len(todo)):
        outcomes.append(outcome)
        if arguments.verbose:
            print(f"{outcome.result}: {outcome.name}: {outcome.reason}\n{outcome.details}".rstrip(), flush=True)
    tally = Counter(outcome.result for outcome in outcomes)
    for result in (REFUSED, CRASHED):
        for outcome in outcomes:
            if outcome.result == result:
                print(f"{result}: {outcome.name}: {outcome.reason}")
    print(f"{len(outcomes)} models, presets {' and '.join(PRESETS)}")
    for result in (QUANTIZED, NOTHING, REFUSED, UNSUPPORTED, CRASHED):
        print(f"{tally[result]:6} {result}")
    return 1 if tally[CRASHED] else 0


if __name__ == "__main__":
    sys.exit(main())
