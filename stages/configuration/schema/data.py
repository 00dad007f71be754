"""The samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.configuration.schema.fields import MISSING, param


@dataclass
class Files:
    """SHA-256 of every file and folder that sections of the configuration name, by name; computed, not set."""

    model: dict[str, str] = param(dict, "the model, with weights beside it")
    data: dict[str, str] = param(dict, "arguments of data sets that are files or folders")
    metric: dict[str, str] = param(dict, "the same of metrics")


@dataclass
class Data:
    """The samples. Each set is a class named by `_target_` with its arguments."""

    name: str = param(MISSING, "short name of the data set, used for run names and reports")
    calibration: dict[str, Any] = param(dict, "data set for the statistics: `_target_` and its arguments")
    validation: dict[str, Any] | None = param(
        None,
        "data set for the metrics: what it leaves out is as in `calibration`, unless it has a `_target_`; null takes the samples of"
        " `calibration` that were not used for calibration",
    )
    calibration_size: int | None = param(
        None, "how many samples go to calibration; null: all, or 300 when there is no validation set", low=1
    )
    validation_size: int | None = param(None, "how many samples go to validation; null: all that are left", low=1)
    shuffle: bool = param(False, "draw the samples at random (by `seed`) instead of taking the first ones")
    allow_overlap: bool = param(False, "let calibration and validation share samples instead of stopping")
    streams: bool = param(
        False,
        "samples are parts of streams, in order: a model that keeps a state (ReadValue, Assign) begins each with the one that the part"
        " before it leaves, where the data set's method stream(index) gives the same name; false: each sample with the initial state",
    )
