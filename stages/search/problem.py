"""All that the evaluation of a candidate follows from, except the candidate: made once, sent to every worker."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from stages.configuration import schema
from stages.quantization.solution.tuned import Tuned
from stages.quantization.statistics.store import Statistics
from stages.runtime import engine
from stages.runtime.datasets import Sample, Samples
from stages.runtime.metrics import Metric

MEMORY = 2_000_000_000  # bytes of samples, and of FP32 outputs, that a process keeps; what is beyond is made again each time
CODE = (
    "quantization",
    "runtime",
    "measurement",
    *(f"search/{name}.py" for name in ("problem", "candidates", "evaluator", "planning/output_noise", "tuning/early", "tuning/objective")),
)


@cache
def code_key() -> str:
    """Identity of the code that builds and evaluates candidates: where it changes, remembered results do not count."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in CODE:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Problem:
    """A model with its statistics and validation samples, and how candidates are judged on them. Picklable.

    Attributes:
        key: Identity of everything that a candidate's metric follows from.
        xml: The FP32 model's IR.
        weights: The IR's weights.
        statistics: Of the calibration samples.
        samples: Validation samples.
        metrics: By name, bound to the model; the primary one first.
        engine: How models are run.
        pot_compatible: Follow POT's rules where ours differ.
        fp32: Per-sample rows [N, k] of the FP32 model by metric.
        calibration: Calibration samples, where candidates need inference over them; else None.
        tuned: What layer-wise tuning found for the base; holds for layers that a candidate quantizes in the same way.
        code: `code_key()` where the problem was made.
    """

    key: str
    xml: bytes
    weights: bytes
    statistics: Statistics
    samples: Samples
    metrics: Mapping[str, Metric]
    engine: schema.Engine
    pot_compatible: bool
    fp32: Mapping[str, NDArray[np.float64]]
    calibration: Samples | None = None
    tuned: Tuned | None = None
    code: str = field(default_factory=code_key)

    def model(self) -> ov.Model:
        """A copy of the FP32 model, to be edited at will."""
        return memory(self).model()

    def chosen(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The validation samples at these positions, in this order."""
        return memory(self).samples(positions)

    def references(self, positions: Sequence[int]) -> Iterator[list[NDArray[Any]]]:
        """The FP32 model's outputs (in f32) for the validation samples at these positions, in this order."""
        return memory(self).references(positions)

    def default_precision(self, timing: Hashable, compile: Callable[[ov.Model], ov.CompiledModel]) -> ov.CompiledModel:
        """The FP32 model compiled in the device's default precision, once for each way of timing."""
        return memory(self).compiled(timing, compile)

    @property
    def primary(self) -> str:
        """Name of the primary metric."""
        return next(iter(self.metrics))


class _Memory:
    """What a process remembers of a problem, so that no evaluation repeats it."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._lock = threading.RLock()
        self._model: ov.Model | None = None
        self._fp32: ov.CompiledModel | None = None
        self._compiled: dict[Hashable, ov.CompiledModel] = {}
        self._samples: dict[int, Sample] = {}
        self._references: dict[int, list[NDArray[Any]]] = {}
        self._free = {"samples": MEMORY, "references": MEMORY}

    def model(self) -> ov.Model:
        with self._lock:
            if self._model is None:
                self._model = engine.core().read_model(self._problem.xml, self._problem.weights)
            return self._model.clone()

    def compiled(self, key: Hashable, compile: Callable[[ov.Model], ov.CompiledModel]) -> ov.CompiledModel:
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = compile(self.model())
            return self._compiled[key]

    def samples(self, positions: Sequence[int]) -> Iterator[Sample]:
        for position in positions:
            sample = self._samples.get(position)
            if sample is None:
                sample = self._problem.samples[position]
                if self._fits("samples", list(sample.inputs.values())):
                    self._samples[position] = sample
            yield sample

    def references(self, positions: Sequence[int]) -> Iterator[list[NDArray[Any]]]:
        with self._lock:
            if self._fp32 is None:
                self._fp32 = engine.compile(self.model(), self._problem.engine, "f32")
        first, runner = 0, engine.Runner(self._fp32)
        while first < len(positions):
            chunk = positions[first : first + engine.CHUNK]
            first += len(chunk)
            missing = [position for position in chunk if position not in self._references]
            fresh: dict[int, list[NDArray[Any]]] = {}
            for position, outputs in zip(missing, runner.infer(self.samples(missing)), strict=True):
                fresh[position] = [output.copy() for output in outputs]
                if self._fits("references", fresh[position]):
                    self._references[position] = fresh[position]
            for position in chunk:
                yield fresh[position] if position in fresh else self._references[position]

    def _fits(self, what: str, arrays: Sequence[NDArray[Any]]) -> bool:
        with self._lock:
            self._free[what] -= sum(array.nbytes for array in arrays)
            return self._free[what] >= 0


_memories: dict[str, _Memory] = {}


def memory(problem: Problem) -> _Memory:
    """What this process remembers of the problem; another problem's memory is given back."""
    if problem.key not in _memories:
        _memories.clear()
        _memories[problem.key] = _Memory(problem)
    return _memories[problem.key]
