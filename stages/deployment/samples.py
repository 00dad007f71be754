"""The samples of a package with the outputs to expect, and what its `score.py` must know of the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from stages.common import artifacts
from stages.configuration.loading import create
from stages.configuration.schema import Config
from stages.deployment import score
from stages.deployment.deployable import Deployable
from stages.runtime import engine
from stages.runtime.datasets import Sample
from stages.runtime.metrics import Accuracy, CharacterAccuracy, ExactMatch, MeanIoU, Metric, ReferenceError
from stages.runtime.samples import validation_samples

SMALLEST_ROUNDING = 1e-3  # what another order of additions may make of a deep FP32 model's outputs
SAME = 1e-6  # the same value of a metric, by two implementations


@dataclass(frozen=True)
class Packed:
    """The samples of a package.

    Attributes:
        arrays: Content of samples.npz: `<sample>/input/<index>`, `/output/`, `/fp32/` where a metric compares with it, `/target`;
            `<metric>/classes`.
        count: How many samples there are.
        allowed_difference: Of outputs from the expected ones, as a share: what quantization itself makes. More is no rounding.
        metrics: What score.py needs of each metric that it knows, with its value over these samples.
        left: Metrics that it does not know, and why.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    count: int = 0
    allowed_difference: float = 0.0
    metrics: Sequence[Mapping[str, Any]] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What inference.json says of them."""
        return {"count": self.count, "allowed_difference": self.allowed_difference, "metrics": list(self.metrics)}

    def write(self, path: Path) -> None:
        """Write samples.npz, with the same bytes for the same arrays."""
        np.savez_compressed(path, **self.arrays)  # type: ignore[arg-type]


def pack(config: Config, model: Deployable, compiled: ov.CompiledModel) -> Packed:
    """The first validation samples, each run with its own initial state.

    Args:
        config: For the samples, how many, and the metrics.
        model: What is packaged.
        compiled: The same, as it is to be run.

    Raises:
        UserError: the samples are not there any more, or not what they were.
    """
    if not config.package.samples:
        return Packed()
    samples = [sample._replace(part=None) for sample in validation_samples(config)[: config.package.samples]]
    fp32 = engine.read_artifact(artifacts.folder("prepare"))
    references = _outputs(engine.compile(fp32, config.engine, "f32"), samples)
    results = _outputs(compiled, samples)
    arrays = _arrays(samples, results)
    with_reference = arrays | {f"{n}/fp32/{i}": output for n, outputs in enumerate(references) for i, output in enumerate(outputs)}
    rounding = max(score.difference(results, with_reference, "fp32"), SMALLEST_ROUNDING)
    metrics, left = [], {}
    for name, section in config.metric.items():
        metric = create(section, f"metric.{name}")
        metric.bind(fp32)
        expected = metric.value(np.stack([_row(metric, *entry) for entry in zip(samples, results, references, strict=True)]))
        if (reason := _not_known(metric, arrays)) is not None:
            left[name] = reason
            continue
        entry = {"name": name, **SETTINGS[type(metric)](metric)}
        if isinstance(metric, ExactMatch):
            arrays[f"{name}/classes"] = with_reference[f"{name}/classes"] = np.array(metric.decoder.classes)
        value = score.value(entry, results, with_reference)
        if abs(value - expected) > SAME * max(1.0, abs(expected)):
            left[name] = f"score.py makes {value:.6g} of what {type(metric).__name__} calls {expected:.6g}"
            continue
        metrics.append({**entry, "value": float(f"{value:.8g}")})
    shipped = with_reference if any(entry["kind"] == "reference" for entry in metrics) else arrays
    return Packed(shipped, len(samples), float(f"{rounding:.3g}"), metrics, left)


def _outputs(compiled: ov.CompiledModel, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    return [[output.copy() for output in outputs] for outputs in engine.infer(compiled, samples)]


def _arrays(samples: Sequence[Sample], results: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for number, (sample, outputs) in enumerate(zip(samples, results, strict=True)):
        arrays |= {f"{number}/input/{index}": np.asarray(value) for index, value in enumerate(sample.inputs.values())}
        arrays |= {f"{number}/output/{index}": output for index, output in enumerate(outputs)}
        if (target := _target(sample.target)) is not None:
            arrays[f"{number}/target"] = target
    return arrays


def _target(target: Any) -> np.ndarray | None:
    """A label as an array of numbers or text; None where it is something else, which a file of arrays cannot hold."""
    try:
        array = np.asarray(target)
    except ValueError:  # rows of different lengths
        return None
    return array if array.dtype.kind in "biufU" else None


def _row(metric: Metric, sample: Sample, outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
    return engine.metric_row("", metric, outputs, reference if metric.uses_reference else sample.target, sample.label)


def _not_known(metric: Metric, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Why score.py does not compute a metric."""
    if type(metric) not in SETTINGS:
        return f"{type(metric).__name__} is not in score.py"
    if not metric.uses_reference and "0/target" not in arrays:
        return "the labels are no numbers and no text"
    return None


def _accuracy(metric: Accuracy) -> dict[str, Any]:
    return {"kind": "accuracy", "output": metric.index, "top_k": metric.top_k, "threshold": metric.threshold}


def _mean_iou(metric: MeanIoU) -> dict[str, Any]:
    settings = {"output": metric.index, "classes": metric.classes, "class_axis": metric.class_axis, "threshold": metric.threshold}
    return {"kind": "mean_iou", **settings, "is_map": metric.is_map, "ignore_label": metric.ignore_label}


def _reference(metric: ReferenceError) -> dict[str, Any]:
    return {"kind": "reference", "outputs": metric.indices, "squared": metric.kind == "mean_squared"}


def _text(kind: str) -> Any:
    def settings(metric: ExactMatch) -> dict[str, Any]:
        return {
            "kind": kind,
            "output": metric.index,
            "ignore_space": metric.ignore_space,
            "blank": metric.decoder.blank,
        }

    return settings


# By the class itself: one that is derived from it may compute anything.
SETTINGS: dict[type[Metric], Any] = {
    Accuracy: _accuracy,
    MeanIoU: _mean_iou,
    ReferenceError: _reference,
    ExactMatch: _text("exact"),
    CharacterAccuracy: _text("characters"),
}
