"""The noise that quantized blocks make at the model's outputs, measured like any metric: remembered, resumable, on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.runtime.metrics import Metric
from stages.search.candidates import Candidate, digest
from stages.search.evaluator import Task
from stages.search.problem import Problem
from stages.search.session import Session

SAMPLES = 64  # sixteen do not rank blocks
NOISE = "noise"


class OutputNoise(Metric):
    """Power of the difference to the FP32 model's outputs over the power of those, the mean over outputs and samples."""

    higher_is_better = False
    uses_reference = True

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        """One sample's share; 1 for an output that is not finite, or of another shape than FP32's."""
        return float(np.mean([_share(output, reference) for output, reference in zip(outputs, target, strict=True)]))


def _share(output: np.ndarray, reference: np.ndarray) -> float:
    if output.shape != reference.shape:
        return 1.0
    signal = reference.astype(np.float64)
    known = np.isfinite(signal)
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.sum((output.astype(np.float64)[known] - signal[known]) ** 2))
        power = float(np.sum(signal[known] ** 2))
    if not np.isfinite(error) or not np.isfinite(power):
        return 1.0
    return min(error / power, 1.0) if power > 0 else float(error > 0)


def noise_problem(problem: Problem) -> Problem:
    """The problem of finding that noise, in f32: what bf16 adds is there once, whatever is quantized."""
    engine = dataclasses.replace(problem.engine, inference_precision="f32")
    key = digest([problem.key, "output noise"])
    return dataclasses.replace(problem, key=key, metrics={NOISE: OutputNoise()}, engine=engine, fp32={})


def output_noise(session: Session, candidates: Sequence[Candidate], positions: tuple[int, ...]) -> list[float]:
    """The noise of each candidate over samples, of a session on `noise_problem`."""
    outcomes = session.evaluate([Task(candidate, positions) for candidate in candidates])
    return [float(outcome.rows[NOISE].mean()) for outcome in outcomes]
