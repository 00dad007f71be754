"""The statistics of the calibration samples, and how they are stored.

Values are kept per sample, so that every preset, mode, estimator and aggregator is arithmetic on them.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.distribution import representatives

Array = NDArray[np.float32]
FORMAT = 2
PER_TENSOR = ("lowest", "highest", "size", "channel_lowest", "channel_highest", "channel_size", "features")
PER_OPERATION = ("input_mean", "output_mean")


@dataclass
class Statistics:
    """Statistics of the calibration samples, by tensor or by operation name.

    Attributes:
        samples: Number of samples N.
        lowest: [N, k], the k lowest values of each sample from the extreme inwards, NaN where a sample has fewer. Zeros
            for tensors that are never negative (Points.from_zero), unless their tails overlap.
        highest: The same for the highest values.
        size: [N], how many values a sample has: none where a model branches on what it finds.
        channel_lowest: [N, C, k], the lowest values of each channel (axis 1).
        channel_highest: The same for the highest values.
        channel_size: [N], how many values a channel has.
        features: [N, 2, F], the lowest and highest value of each index of the last axis; infinite or NaN where a sample has none.
        input_mean: [C] by operation, the data input's mean over samples and all axes but the channel's.
        output_mean: [C] by operation, the same of the output with its bias.
        input_shape: By operation, the data input's most frequent shape.
        distribution: [2, n], how the values of all samples are distributed (`distribution`).
        derived: Tensor -> (stored tensor, scale, offset) with x = (y - offset) / scale of each stored value y.
    """

    samples: int = 0
    lowest: dict[TensorName, Array] = field(default_factory=dict)
    highest: dict[TensorName, Array] = field(default_factory=dict)
    size: dict[TensorName, NDArray[np.int64]] = field(default_factory=dict)
    channel_lowest: dict[TensorName, Array] = field(default_factory=dict)
    channel_highest: dict[TensorName, Array] = field(default_factory=dict)
    channel_size: dict[TensorName, NDArray[np.int64]] = field(default_factory=dict)
    features: dict[TensorName, Array] = field(default_factory=dict)
    distribution: dict[TensorName, NDArray[np.int64]] = field(default_factory=dict)
    input_mean: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    output_mean: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    input_shape: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: dict[TensorName, tuple[TensorName, float, float]] = field(default_factory=dict)

    def tails(self, tensor: TensorName) -> tuple[Array, Array, NDArray[np.int64]]:
        """The lowest and highest values [N, k] of a tensor and its size [N]. KeyError if nothing is stored."""
        if tensor in self.lowest:
            return self.lowest[tensor], self.highest[tensor], self.size[tensor]
        stored, scale, offset = self.derived[tensor]
        low, high = (((table[stored].astype(np.float64) - offset) / scale).astype(np.float32) for table in (self.lowest, self.highest))
        return (low, high, self.size[stored]) if scale > 0 else (high, low, self.size[stored])

    def body(self, tensor: TensorName) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Values that stand for those of a tensor, and the share of each; None where its distribution is not known."""
        stored, scale, offset = self.derived.get(tensor, (tensor, 1.0, 0.0)) if tensor not in self.distribution else (tensor, 1.0, 0.0)
        if stored not in self.distribution:
            return None
        values, shares = representatives(self.distribution[stored])
        return (values - offset) / scale, shares


def empty_tensors(statistics: Statistics) -> dict[TensorName, int]:
    """For how many samples a tensor is empty, where there are any."""
    counts = {tensor: int(np.count_nonzero(size == 0)) for tensor, size in (statistics.size | statistics.channel_size).items()}
    return {tensor: count for tensor, count in counts.items() if count}


def first_samples(statistics: Statistics, count: int) -> Statistics:
    """The statistics of the first samples only; means and distributions, which are kept over all samples, stay."""
    tables = {name: {key: values[:count] for key, values in getattr(statistics, name).items()} for name in PER_TENSOR}
    return replace(statistics, samples=count, **tables)


def save(statistics: Statistics, folder: Path) -> None:
    """Write statistics.npz (arrays) and index.json (which array is what)."""
    arrays: dict[str, NDArray[Any]] = {}
    entries: list[dict[str, Any]] = []
    for quantity in (*PER_TENSOR, "distribution", *PER_OPERATION):
        for key, values in sorted(getattr(statistics, quantity).items()):  # in whatever order they were collected
            name = {"operation": key} if quantity in PER_OPERATION else {"tensor": list(key)}
            entries.append({"quantity": quantity, **name, "array": str(len(arrays))})
            arrays[str(len(arrays))] = values
    index = {
        "format": FORMAT,
        "samples": statistics.samples,
        "entries": entries,
        "input_shape": {name: list(shape) for name, shape in sorted(statistics.input_shape.items())},
        "derived": [
            {"tensor": list(tensor), "from": list(source), "scale": scale, "offset": offset}
            for tensor, (source, scale, offset) in statistics.derived.items()
        ],
    }
    np.savez(folder / "statistics.npz", allow_pickle=False, **arrays)
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> Statistics:
    """Read what `save` wrote. UserError if it is missing, damaged or of another version."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']} instead of {FORMAT}")
        with (folder / "statistics.npz").open("rb") as file, np.load(file) as archive:
            return _from_index(index, {key: archive[key] for key in archive.files})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder}: statistics cannot be read ({what}); run `dvc repro --force collect_statistics`") from None


def _from_index(index: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Statistics:
    statistics = Statistics(index["samples"])
    for entry in index["entries"]:
        key = entry["operation"] if "operation" in entry else TensorName(*entry["tensor"])
        getattr(statistics, entry["quantity"])[key] = arrays[entry["array"]]
    statistics.input_shape = {name: tuple(shape) for name, shape in index["input_shape"].items()}
    statistics.derived = {
        TensorName(*entry["tensor"]): (TensorName(*entry["from"]), entry["scale"], entry["offset"]) for entry in index["derived"]
    }
    return statistics
