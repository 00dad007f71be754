"""Where quantizers go, and how their ranges are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.configuration.schema.fields import MISSING, param

PRESETS = ("performance", "mixed", "accuracy", "auto")
MODES = ("symmetric", "asymmetric")
GRANULARITIES = ("pertensor", "perchannel")
ESTIMATOR_PRESETS = ("default", "quantile", "mse", "sqnr")
ESTIMATOR_TYPES = ("min", "max", "abs_max", "quantile", "abs_quantile", "histogram", "percentile", "entropy", "sqnr")
AGGREGATORS = ("mean", "max", "min", "median", "mean_no_outliers", "median_no_outliers", "hl_estimator", "mean_unclipped")


@dataclass
class Estimator:
    """How one border of a range is estimated; unset keys come from the estimator preset."""

    type: str | None = param(
        None, "statistic of a sample; histogram, percentile, entropy and sqnr: of all samples together", choices=ESTIMATOR_TYPES
    )
    outlier_prob: float | None = param(None, "share of values cut off by the quantile types and percentile", above=0.0, below=0.5)
    clipping_value: float | None = param(None, "the border is never wider than this value")
    aggregator: str | None = param(None, "how samples are combined (activations only)", choices=AGGREGATORS)


@dataclass
class RangeEstimator:
    """Range estimation: a preset, refined per border."""

    preset: str = param(
        "default",
        "table of estimators to start from; mse: ranges of least squared error; sqnr: of the samples' largest SQNR in dB, on average",
        choices=ESTIMATOR_PRESETS,
    )
    min: Estimator = param(Estimator, "lower border")
    max: Estimator = param(Estimator, "upper border")


@dataclass
class Scheme:
    """A filter over the schemes that the target offers (weights or activations); unset keys allow everything."""

    bits: int | None = param(None, "number of bits", low=2, high=16)
    mode: str | None = param(None, "symmetric or asymmetric range", choices=MODES)
    granularity: str | None = param(None, "one range per tensor or per channel", choices=GRANULARITIES)
    level_low: int | None = param(None, "lowest quantized level")
    level_high: int | None = param(None, "highest quantized level")
    range_estimator: RangeEstimator | None = param(None, "range estimator of this group; replaces quantization.range_estimator")


@dataclass
class IgnoredOperation:
    """Operations left in floating point by type and attributes."""

    type: str = param(MISSING, "operation type, e.g. Add")
    attributes: dict[str, Any] = param(dict, "attribute values that must all be equal")


@dataclass
class Ignored:
    """What stays in floating point on request."""

    scope: list[str] = param(list, "names or regular expressions (re:...) of operations to leave in floating point")
    operations: list[IgnoredOperation] = param(list, "operation types, optionally with attribute values")


@dataclass
class Quantization:
    """Where quantizers go and how their ranges are computed (POT's DefaultQuantization)."""

    preset: str = param(
        "performance",
        "performance: all symmetric; mixed: asymmetric activations; accuracy: all asymmetric; auto: activations by their expected error",
        choices=PRESETS,
    )
    model_type: str = param(
        "none", "transformer leaves the operations in floating point that transformers are sensitive to", choices=("none", "transformer")
    )
    stat_subset_size: int | None = param(None, "number of calibration samples to use; null: all", low=1)
    stat_batch_size: int = param(
        1, "calibration samples that count as one batch, as POT infers them: one minimum and maximum per batch and tensor", low=1
    )
    use_channel_alignment: bool = param(True, "run ActivationChannelAlignment before quantization")
    use_smooth_quant: bool = param(
        True,
        "with model_type transformer, divide the features of what MatMuls read, and multiply their weights by the same, where that is"
        " expected to lose less (SmoothQuant)",
    )
    saturation_fix: str = param(
        "first_layer",
        "halve the weights' range against 16-bit saturation: of the first layers, all, or none",
        choices=("first_layer", "all", "no"),
    )
    ignored: Ignored = param(Ignored, "what stays in floating point")
    weights: Scheme = param(Scheme, "scheme of the weights, among those that the target offers")
    activations: Scheme = param(Scheme, "scheme of the activations, among those that the target offers")
    allow_unsupported: bool = param(False, "use weights/activations settings even where the target offers no such scheme")
    range_estimator: RangeEstimator = param(RangeEstimator, "how ranges are estimated")
    pot_compatible: bool = param(False, "follow POT also where this project does better on purpose (stages/README.md)")
