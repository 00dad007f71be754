"""The FP32 models' metric values, remembered: they do not change when only the quantization does."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.runtime.datasets import Sample
from stages.runtime.engine import core, evaluate_metrics
from stages.runtime.metrics import Metric

FOLDER = artifacts.BUILD / ".baseline"  # no artifact: DVC knows nothing of it, and it may be removed at any time
CANDIDATE = "int8"
RUNS = "samples with a fresh state"  # how, where that has changed

Values = dict[str, dict[str, NDArray[np.float64]]]


def evaluate(compiled: Mapping[str, ov.CompiledModel], samples: Iterable[Sample], metrics: Mapping[str, Metric], key: str) -> Values:
    """Like `engine.evaluate_metrics`, but runs only what is not remembered under `key`.

    The jobs of a sweep share what is remembered: where one of them is about to find out, others wait for it.

    Args:
        compiled: Models by name: `fp32`, `int8`, and others whose values belong to the baseline.
        samples: Bound to the models.
        metrics: Bound to the models.
        key: Identity of everything that the baseline's values follow from.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = load(FOLDER / key / "values.npz", [name for name in compiled if name != CANDIDATE], list(metrics))
        if known.keys() != compiled.keys() - {CANDIDATE}:
            return _evaluate(compiled, samples, metrics, key, known)
    return _evaluate(compiled, samples, metrics, key, known)


def _evaluate(
    compiled: Mapping[str, ov.CompiledModel], samples: Iterable[Sample], metrics: Mapping[str, Metric], key: str, known: Values
) -> Values:
    needed = {CANDIDATE} | (compiled.keys() - known.keys())
    if any(metric.uses_reference for metric in metrics.values()):
        needed.add("fp32")  # its outputs are what the candidate is compared with
    values = known | evaluate_metrics({name: model for name, model in compiled.items() if name in needed}, samples, metrics)
    if needed - {CANDIDATE} - known.keys():
        with artifacts.writing(FOLDER / key) as folder:
            save({name: rows for name, rows in values.items() if name != CANDIDATE}, folder / "values.npz")
    return {name: values[name] for name in compiled}


def baseline_key(config: Config, metrics: Iterable[Metric]) -> str:
    """What the FP32 models' values depend on: model, samples, metrics with their code, and what runs the models."""
    prepare = artifacts.folder("prepare")
    code = {getattr(sys.modules.get(kind.__module__), "__file__", None) for metric in metrics for kind in type(metric).__mro__}
    identity: list[Any] = [
        RUNS,
        [artifacts.file_sha256(prepare / name) for name in ("model.xml", "model.bin")],
        artifacts.read_json(prepare / "dataset.json")["validation"]["sha256"],
        list(config.metric.items()),
        config.user_code,
        config.files.metric,
        sorted(artifacts.file_sha256(Path(file)) for file in code if isinstance(file, str) and file.endswith(".py")),
        [artifacts.file_sha256(Path(__file__).parent.parent / "runtime" / name) for name in ("ctc.py", "labels.py")],
        [config.engine.device, core().get_property(config.engine.device, "FULL_DEVICE_NAME"), ov.get_version(), np.__version__],
    ]
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:32]


def save(values: Values, path: Path) -> None:
    """Write values as .npz with one array [N, k] per `model/metric`; the same values give the same bytes."""
    np.savez_compressed(path, **{f"{name}/{metric}": array for name, rows in values.items() for metric, array in rows.items()})  # type: ignore[arg-type]


def load(path: Path, names: Iterable[str], metrics: Iterable[str]) -> Values:
    """What `save` wrote; nothing where it is missing or damaged, which costs another evaluation and no more."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: {metric: file[f"{name}/{metric}"] for metric in metrics} for name in names}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
