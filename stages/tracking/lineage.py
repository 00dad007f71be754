"""What ties a run to the data it was made from, and to what DVC keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.configuration.schema import Config

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST = 36  # characters of a digest that MLflow takes
OUTPUTS = ("prepare", "collect_statistics", "quantize", "correct_bias", "accuracy_aware", "tune")  # without evaluate: times only
DESCRIPTION = """\
Quantized models, one run per result of `dvc repro`.

`int8/drop_points.*` is what a metric lost against FP32 in f32, in points (hundredths) where it is a share, and `value_percent.*` the INT8
model's own value. `speed_up.default` is how many times faster it is than FP32 in the precision that the device prefers,
`speed_up.fp32` than FP32 in f32, both measured side by side: milliseconds of runs that were measured at different times say less.
Of the groups, `more` has intervals and FP32, `accuracy_aware` and `tune` what the searches found, `seconds` and
`peak_memory_mb` what stages cost.
Tags `dvc.*` are the hashes under which DVC keeps what a stage wrote.
"""


def data_inputs(config: Config) -> list[DatasetInput]:
    """The calibration and the validation samples, by the hash of all of them."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    sections = {"calibration": config.data.calibration, "validation": config.data.validation or config.data.calibration}
    inputs = []
    for kind, section in sections.items():
        source = json.dumps({"tags": {"data": json.dumps(section, ensure_ascii=False, default=str)}}, ensure_ascii=False)
        profile = json.dumps({"samples": samples[kind]["count"]})
        digest = samples[kind]["sha256"][:DIGEST]
        dataset = Dataset(config.data.name, digest, source_type="code", source=source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", kind)]))
    return inputs


def dvc_tags() -> dict[str, str]:
    """The hashes under which DVC keeps what stages wrote, computed from what is there, so that they are right also where it is newer
    than dvc.lock.
    """
    return {f"dvc.{stage}": dvc_hash(folder) for stage in OUTPUTS if (folder := artifacts.folder(stage)).is_dir()}


def dvc_hash(folder: Path) -> str:
    """A folder's hash as in dvc.lock: of the list of its files with theirs, as DVC writes it."""
    entries = [{"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()} for path in _files(folder)]
    entries.sort(key=itemgetter("relpath"))
    return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def worst_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table of layers: those of the largest effect on the outputs first, the noisier before the others; at the end those
    of which neither is known.
    """

    def badness(row: Mapping[str, Any]) -> tuple[bool, float, bool, float]:
        effect, noise = row.get("effect_on"), row["sqnr_db"]
        return effect is None, -(effect or 0.0), noise is None, noise or 0.0

    return sorted(rows, key=badness)
