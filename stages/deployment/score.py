"""What the outputs of the samples are worth: their distance from those measured, and metrics. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def difference(results: Sequence[Sequence[np.ndarray]], samples: Mapping[str, np.ndarray], kind: str = "output") -> float:
    """Distance of all outputs from those stored under `kind`, as a share of their length (L2)."""
    distance = length = 0.0
    for sample, outputs in enumerate(results):
        for index, output in enumerate(outputs):
            expected = samples[f"{sample}/{kind}/{index}"].astype(np.float64)
            if output.shape != expected.shape:
                return float("inf")
            both = np.isfinite(expected) & np.isfinite(output)
            distance += float(np.sum((np.where(both, output, 0.0) - np.where(both, expected, 0.0)) ** 2)) + np.count_nonzero(
                np.isnan(output) != np.isnan(expected)
            )
            length += float(np.sum(np.where(both, expected, 0.0) ** 2))
    return float(np.sqrt(distance / length)) if length else float(np.sqrt(distance))


def value(metric: Mapping[str, Any], results: Sequence[Sequence[np.ndarray]], samples: Mapping[str, np.ndarray]) -> float:
    """A metric of the samples; `metric` says which kind it is, and its settings."""
    total = np.sum([np.asarray(_KINDS[metric["kind"]](metric, outputs, samples, sample)) for sample, outputs in enumerate(results)], axis=0)
    if metric["kind"] == "mean_iou":
        right, union = np.split(total, 2)
        return float(np.mean(right[union > 0] / union[union > 0])) if union.any() else 1.0
    return float(1 - total[0] / total[1]) if metric["kind"] == "characters" else float(total[0] / len(results))


def _accuracy(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> list[float]:
    scores, label = outputs[metric["output"]].ravel(), int(samples[f"{sample}/target"].ravel()[0])
    if metric["threshold"] is not None:
        return [float((scores[0] > metric["threshold"]) == label)]
    return [float(np.count_nonzero(scores >= scores[label]) <= metric["top_k"])]


def _mean_iou(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> np.ndarray:
    output, labels = outputs[metric["output"]], samples[f"{sample}/target"].ravel().astype(np.int64)
    if metric["threshold"] is not None:
        output = output > metric["threshold"]
    elif not metric["is_map"]:
        output = output.argmax(axis=metric["class_axis"])
    counted = labels != metric["ignore_label"] if metric["ignore_label"] is not None else np.ones(labels.shape, bool)
    read, labels = output.ravel().astype(np.int64)[counted], labels[counted]
    known, classes = (read >= 0) & (read < metric["classes"]), metric["classes"]
    right = np.bincount(labels[read == labels], minlength=classes)
    union = np.bincount(labels, minlength=classes) + np.bincount(read[known], minlength=classes) - right
    return np.concatenate([right, union])


def _reference(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> list[float]:
    distances = []
    for index in metric["outputs"]:
        reference = samples[f"{sample}/fp32/{index}"].astype(np.float64)
        error, norm = outputs[index].astype(np.float64) - reference, np.linalg.norm(reference)
        distances.append(np.mean(error**2) if metric["squared"] else np.linalg.norm(error) / (norm if norm > 0 else 1.0))
    return [float(np.mean(distances))]


def _text(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> tuple[str, str]:
    """What greedy CTC decoding reads, and what is there."""
    output, classes = outputs[metric["output"]], samples[f"{metric['name']}/classes"]
    best = output.argmax(axis=output.shape.index(len(classes), 1)).ravel()
    changes = np.flatnonzero(np.diff(best, prepend=-1))
    read, target = "".join(classes[index] for index in best[changes] if index != metric["blank"]), str(samples[f"{sample}/target"].item())
    return (read.replace(" ", "").replace("\u3000", ""), target.replace(" ", "")) if metric["ignore_space"] else (read, target)


def _exact(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> list[float]:
    read, target = _text(metric, outputs, samples, sample)
    return [float(read == target)]


def _characters(metric: Mapping[str, Any], outputs: Sequence[np.ndarray], samples: Mapping[str, np.ndarray], sample: int) -> list[float]:
    """Edits that the reading needs (Levenshtein distance), and characters."""
    read, target = _text(metric, outputs, samples, sample)
    row = list(range(len(target) + 1))
    for i, character in enumerate(read, start=1):
        diagonal, row[0] = row[0], i
        for j, expected in enumerate(target, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != expected))
    return [row[-1], len(target)]


_KINDS = {
    "accuracy": _accuracy,
    "mean_iou": _mean_iou,
    "reference": _reference,
    "exact": _exact,
    "characters": _characters,
}
