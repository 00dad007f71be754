"""The configuration: every parameter's name, type, default, allowed values and meaning. Cheap to import.

Each section is a plain dataclass. `param()` attaches one line of meaning and the allowed values; `stages.config`
checks them, and the reference in conf/README.md is generated from them. Names are POT's own where POT has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.configuration.schema.accuracy_aware import AccuracyAware, BudgetMetric
from stages.configuration.schema.bias_correction import BiasCorrection
from stages.configuration.schema.cluster import Cluster
from stages.configuration.schema.collect_statistics import CollectStatistics
from stages.configuration.schema.data import Data, Files
from stages.configuration.schema.engine import Engine
from stages.configuration.schema.evaluate import Benchmark, Evaluate
from stages.configuration.schema.fields import MISSING, param
from stages.configuration.schema.layerwise_tuning import LayerwiseTuning, LearningRate
from stages.configuration.schema.model import Model, Package
from stages.configuration.schema.quantization import (
    AGGREGATORS,
    ESTIMATOR_PRESETS,
    ESTIMATOR_TYPES,
    GRANULARITIES,
    MODES,
    PRESETS,
    Estimator,
    Ignored,
    IgnoredOperation,
    Quantization,
    RangeEstimator,
    Scheme,
)
from stages.configuration.schema.shipping import MODELS, Check, Shipment
from stages.configuration.schema.sweep import Sweep
from stages.configuration.schema.target_device import DEVICES, TargetDevice, TargetOperation
from stages.configuration.schema.tracking import Tracking
from stages.configuration.schema.tune import ESTIMATOR_TUNING_SCOPE, TUNING_SCOPE, Tune, TuneBenchmark, TuneMetric, TuneSpace

__all__ = [
    "AGGREGATORS",
    "APART",
    "COMPUTED",
    "DEVICES",
    "ESTIMATOR_PRESETS",
    "ESTIMATOR_TUNING_SCOPE",
    "ESTIMATOR_TYPES",
    "GRANULARITIES",
    "MISSING",
    "MODELS",
    "MODES",
    "PRESETS",
    "TUNING_SCOPE",
    "AccuracyAware",
    "Benchmark",
    "BiasCorrection",
    "BudgetMetric",
    "Check",
    "Cluster",
    "CollectStatistics",
    "Config",
    "Data",
    "Engine",
    "Estimator",
    "Evaluate",
    "Files",
    "Ignored",
    "IgnoredOperation",
    "LayerwiseTuning",
    "LearningRate",
    "Model",
    "Package",
    "Quantization",
    "RangeEstimator",
    "Scheme",
    "Shipment",
    "Sweep",
    "TargetDevice",
    "TargetOperation",
    "Tracking",
    "Tune",
    "TuneBenchmark",
    "TuneMetric",
    "TuneSpace",
    "param",
]

COMPUTED = ("correction_engine", "target_device_sha256", "user_code", "files")  # what the config stage fills in
APART = ("tracking", "package", "check", "sweep")  # sections on which no result depends


@dataclass
class Config:
    """The whole configuration, one section per concern."""

    seed: int = param(0, "seed of everything drawn at random", low=0)
    model: Model = param(Model, "the floating-point model")
    data: Data = param(Data, "calibration and validation samples")
    metric: dict[str, Any] = param(dict, "metrics by name: `_target_` and its arguments; the first is the primary one")
    engine: Engine = param(Engine, "how models are run")
    collect_statistics: CollectStatistics = param(CollectStatistics, "what is stored of the calibration samples")
    target_device: TargetDevice = param(TargetDevice, "what the target hardware can run")
    quantization: Quantization = param(Quantization, "where quantizers go and their ranges")
    bias_correction: BiasCorrection = param(BiasCorrection, "bias correction")
    layerwise_tuning: LayerwiseTuning = param(LayerwiseTuning, "layer-wise tuning")
    evaluate: Evaluate = param(Evaluate, "what is measured")
    accuracy_aware: AccuracyAware = param(AccuracyAware, "reversion of layers until an accuracy budget holds")
    cluster: Cluster = param(Cluster, "where searches evaluate")
    tune: Tune = param(Tune, "TPE search")
    tracking: Tracking = param(Tracking, "MLflow")
    package: Shipment = param(Shipment, "what is shipped")
    check: Check = param(Check, "limits that a result must keep")
    sweep: Sweep = param(Sweep, "what a sweep does after its jobs")
    correction_engine: Engine | None = param(
        None, "the section `engine` where the accurate BiasCorrection or layer-wise tuning runs, null where nothing does; computed, not set"
    )
    target_device_sha256: str | None = param(None, "SHA-256 of `target_device`, by which DVC knows its tables; computed, not set")
    user_code: dict[str, str] = param(
        dict, "SHA-256 of the project's own Python files that a `_target_` names or that these import; computed, not set"
    )
    files: Files = param(Files, "SHA-256 of every file and folder that `model`, `data` and `metric` name; computed, not set")
