"""The configuration: every parameter's name, type, default, allowed values and meaning. Cheap to import.

Each section is a plain dataclass. `param()` attaches one line of meaning and the allowed values; `stages.config`
checks them, and README's configuration reference is generated from them. Names are POT's own where POT has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"  # omegaconf's marker for "must be given"
COMPUTED = ("correction_engine", "target_device_sha256", "user_code", "files")  # what the config stage fills in

PRESETS = ("performance", "mixed", "accuracy")
MODES = ("symmetric", "asymmetric")
GRANULARITIES = ("pertensor", "perchannel")
ESTIMATOR_PRESETS = ("default", "quantile")
ESTIMATOR_TYPES = ("min", "max", "abs_max", "quantile", "abs_quantile")
AGGREGATORS = ("mean", "max", "min", "median", "mean_no_outliers", "median_no_outliers", "hl_estimator")
TUNING_SCOPE = ("layer", "bits", "mode", "granularity", "range_estimator")
ESTIMATOR_TUNING_SCOPE = ("preset", "type", "outlier_prob", "aggregator")
DEVICES = ("ANY", "CPU", "CPU_SPR", "GPU", "NPU", "GNA")


def param(
    default: Any,
    meaning: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its meaning and what it allows: choices, or a range (low/high inclusive, above/below not)."""
    allowed = {"choices": choices, "low": low, "high": high, "above": above, "below": below}
    metadata = {"meaning": meaning, **{key: value for key, value in allowed.items() if value is not None}}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


# ------------------------------------------------------------------------------------------------ what to quantize


@dataclass
class Package:
    """A model file inside a Python package's wheel, fetched with pip."""

    requirement: str | None = param(None, "pip requirement with an exact version, e.g. rapidocr-onnxruntime==1.4.4")
    member: str | None = param(None, "path of the model file inside the wheel")


@dataclass
class Model:
    """Where the floating-point model comes from: a local file, or a file inside a wheel."""

    name: str = param(MISSING, "short name of the model, used for run names and reports")
    path: str | None = param(None, "local file: OpenVINO IR .xml, .onnx, .tflite, .pdmodel, .pb, or a saved-model folder")
    package: Package = param(Package, "a file inside a Python package's wheel, instead of path")
    sha256: str | None = param(None, "expected SHA-256 of the model file; checked when given, required with package")
    input_shape: dict[str, list[int]] = param(
        dict, "fixed shape per input name; -1 keeps a dimension dynamic; for a model with one input the name may be '*'"
    )


@dataclass
class Data:
    """The samples. Each set is a class named by `_target_` with its arguments."""

    name: str = param(MISSING, "short name of the data set, used for run names and reports")
    calibration: dict[str, Any] = param(dict, "data set for the statistics: `_target_` and its arguments")
    validation: dict[str, Any] | None = param(
        None, "data set for the metrics; null takes the samples of `calibration` that were not used for calibration"
    )
    calibration_size: int | None = param(
        None, "how many samples go to calibration; null: all, or 300 when there is no validation set", low=1
    )
    validation_size: int | None = param(None, "how many samples go to validation; null: all that are left", low=1)
    shuffle: bool = param(False, "draw the samples at random (by `seed`) instead of taking the first ones")
    allow_overlap: bool = param(False, "let calibration and validation share samples instead of stopping")


# ------------------------------------------------------------------------------------------------ how to run it


@dataclass
class Engine:
    """How models are run. Statistics, biases and the FP32 baseline always run in f32."""

    device: str = param("CPU", "OpenVINO device that runs the models")
    requests: int = param(0, "parallel inference requests; 0 lets OpenVINO choose", low=0)
    threads: int = param(0, "CPU threads; 0 lets OpenVINO choose", low=0)
    inference_precision: str = param(
        "default",
        "precision of what an INT8 model leaves float when it is evaluated; default on CPU: f32 where weights have zero points",
        choices=("default", "f32", "bf16", "f16"),
    )


@dataclass
class CollectStatistics:
    """What the one pass over the calibration samples stores."""

    outlier_probs: list[float] = param(
        list, "quantiles of whole tensors that are stored, with all below the largest; what the estimators need is added to these"
    )
    channel_outlier_probs: list[float] = param(list, "the same per channel, which takes longer; none by default")
    inplace_statistic: bool = param(
        False,
        "spare memory at the price of time: one sample at a time, and pass after pass with so few tensors that at most 64 MB of it"
        " leave the model at once; the statistics are the same to the byte",
    )
    perchannel: bool = param(False, "store minima and maxima per channel of all tensors; set where activations.granularity asks for it")
    pot_compatible: bool = param(
        False,
        "store also what only quantization.pot_compatible reads, and set where that is: mean outputs of layers, lowest values of"
        " tensors that are never negative",
    )


# ------------------------------------------------------------------------------------------------ how to quantize it


@dataclass
class Estimator:
    """How one border of a range is estimated; unset keys come from the estimator preset."""

    type: str | None = param(None, "statistic of one sample", choices=ESTIMATOR_TYPES)
    outlier_prob: float | None = param(None, "share of values cut off by the quantile types", above=0.0, below=0.5)
    clipping_value: float | None = param(None, "the border is never wider than this value")
    aggregator: str | None = param(None, "how samples are combined (activations only)", choices=AGGREGATORS)


@dataclass
class RangeEstimator:
    """Range estimation: a preset, refined per border."""

    preset: str = param("default", "table of estimators to start from", choices=ESTIMATOR_PRESETS)
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
        "performance", "performance: all symmetric; mixed: asymmetric activations; accuracy: all asymmetric", choices=PRESETS
    )
    model_type: str = param(
        "none", "transformer leaves the operations in floating point that transformers are sensitive to", choices=("none", "transformer")
    )
    stat_subset_size: int | None = param(None, "number of calibration samples to use; null: all", low=1)
    stat_batch_size: int = param(
        1, "calibration samples that count as one batch, as POT infers them: one minimum and maximum per batch and tensor", low=1
    )
    use_channel_alignment: bool = param(True, "run ActivationChannelAlignment before quantization")
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
    pot_compatible: bool = param(False, 'follow POT also where this project does better on purpose (README, "Where we differ from POT")')


@dataclass
class TargetOperation:
    """What a device can run for one operation type: lists of schemes, fastest first. An absent list: not quantized there."""

    weights: list[Scheme] = param(list, "schemes for constant inputs")
    activations: list[Scheme] = param(list, "schemes for computed inputs")


@dataclass
class TargetDevice:
    """The device's quantization abilities, one file per device in conf/target_device/."""

    name: str = param("ANY", "name of the device")
    rules: str = param("ANY", "which device's rules for ignored blocks and saturation apply", choices=DEVICES)
    schemes: dict[str, Any] = param(dict, "named lists of schemes, fastest first, that `operations` refers to")
    operations: dict[str, Any] = param(dict, "per operation type: names of schemes for weights and activations")
    unified_scales: list[str] = param(list, "operation types whose inputs share one range")
    pass_through: list[str] = param(list, "operation types that work on quantized data unchanged")


@dataclass
class BiasCorrection:
    """Shift biases by the mean error that quantized weights cause."""

    enabled: bool = param(True, "correct biases after quantization")
    use_fast_bias: bool = param(
        True, "FastBiasCorrection (arithmetic on the statistics) or the accurate BiasCorrection (walks the layers with inference)"
    )
    threshold: float | None = param(
        None,
        "a layer is left alone when a bias would change by this factor or more; null: 2 with use_fast_bias, else 1000, as POT",
        above=0.0,
    )
    correct_zero_biases: bool = param(True, "also correct layers without a bias or with zero elements, which POT leaves alone")
    apply_for_all_nodes: bool = param(False, "also correct layers whose weights are not quantized")


@dataclass
class LearningRate:
    """Learning rates in units that fit every layer; they fall to zero in a straight line over the steps."""

    weights: float = param(0.02, "of weights, in quantization steps; 0 keeps them", low=0.0)
    bias: float = param(0.02, "of biases, in the layer's root mean squared error before tuning; 0 keeps them", low=0.0)
    weight_fq: float = param(0.002, "of the logarithm of the weights' range; 0 keeps it", low=0.0)
    input_fq: float = param(0.002, "of the logarithm of the input's range, where it serves the layer alone; 0 keeps it", low=0.0)


@dataclass
class LayerwiseTuning:
    """Tune weights, biases and ranges layer by layer against the floating-point layer outputs, after bias correction."""

    use_layerwise_tuning: bool = param(False, "tune the layers")
    optimizer: str = param("Adam", "how gradients become steps", choices=("Adam", "SGD"))
    learning_rate: LearningRate = param(LearningRate, "learning rates")
    weight_decay: float = param(0.0, "pull of everything that is tuned back to where it started, added to the gradient", low=0.0)
    calibration_indices_pool: int = param(300, "how many calibration samples to learn from, drawn by seed", low=1)
    positions_per_sample: int = param(8, "output positions of a layer that are sampled from each of them", low=1)
    num_samples_for_tuning: int = param(12800, "sampled positions that a layer sees in all, again and again", low=1)
    batch_size: int = param(256, "sampled positions per step", low=1)
    use_only_fp_inputs: bool = param(
        True,
        "layers learn from the floating-point model's inputs; false: from the quantized model's, layer after layer, which takes longer",
    )
    seed: int | None = param(None, "seed of what is drawn; null: the project's", low=0)


# ------------------------------------------------------------------------------------------------ how to judge it


@dataclass
class Benchmark:
    """Latency and throughput measurement."""

    enabled: bool = param(True, "measure latency and throughput")
    seconds: float = param(6.0, "measuring time for all models together, at most", above=0.0)


@dataclass
class Evaluate:
    """What is measured of the FP32 and the quantized model."""

    primary_metric: str | None = param(None, "the metric that is reported first and that searches optimise; null: the first of `metric`")
    confidence: float = param(0.95, "confidence level of the intervals", above=0.0, below=1.0)
    noise_samples: int = param(16, "validation samples for the per-layer noise; 0 leaves the noise out", low=0)
    benchmark: Benchmark = param(Benchmark, "latency and throughput")


# ------------------------------------------------------------------------------------------------ how to search


@dataclass
class TuneSpace:
    """What the search may change, layer by layer (POT's TunableQuantization)."""

    preset: str | None = param(None, "the preset to start from; null: that of `quantization`", choices=PRESETS)
    stat_subset_size: int | None = param(
        None, "how many of the calibration samples' statistics the ranges are made of; null: all that were collected", low=1
    )
    tuning_scope: list[str] = param(
        lambda: ["layer", "mode", "range_estimator"],
        f"what may differ from the preset: any of {', '.join(TUNING_SCOPE)}; layer: not quantized at all",
    )
    estimator_tuning_scope: list[str] = param(
        lambda: ["preset"], f"what may differ in a range estimator: any of {', '.join(ESTIMATOR_TUNING_SCOPE)}; type includes preset"
    )
    outlier_prob_choices: list[float] = param(list, "the probabilities among which outlier_prob chooses")
    include: list[str] = param(list, "names or regular expressions (re:...) of the layers that are tuned; empty: all")
    exclude: list[str] = param(list, "names or regular expressions (re:...) of layers that stay as the preset has them")


@dataclass
class TuneMetric:
    """A metric that must keep the budget."""

    name: str = param(MISSING, "one of `metric`")
    baseline_value: float | None = param(None, "what losses are counted from; null: the FP32 model's value in f32")


@dataclass
class TuneBenchmark:
    """How the latency of a trial is measured: as a ratio to FP32 in the device's default precision, taking turns with it."""

    enabled: bool = param(True, "measure latency; without it the share of quantized layers stands for speed")
    duration_seconds: float = param(1.0, "measuring time per trial, for both models together", above=0.0)
    hint: str = param("latency", "one inference at a time, or as many as the device likes", choices=("latency", "throughput"))
    requests: int = param(0, "parallel inference requests with hint throughput; 0 lets OpenVINO choose", low=0)
    streams: int = param(0, "streams of the device; 0 lets OpenVINO choose by the hint", low=0)
    threads: int = param(0, "CPU threads; 0: as in `engine`", low=0)
    batch: int = param(0, "samples per inference; 0: as the model has it", low=0)
    where: str = param(
        "here", "the machine that runs the stage, or the workers of a cluster of one kind of machine", choices=("here", "workers")
    )


@dataclass
class Tune:
    """Search over every layer's own configuration with TPE: fast, within an accuracy budget (POT's Tpe optimizer)."""

    enabled: bool = param(False, "run the search")
    space: TuneSpace = param(TuneSpace, "what may be chosen")
    objective: str = param(
        "pot_loss",
        "pot_loss: POT's formula of accuracy, latency and quantized share; constrained: the fastest within the budget",
        choices=("pot_loss", "constrained"),
    )
    accuracy_loss: float = param(1.0, "the budget: relative loss of the metrics in percent", low=0.0)
    metrics: list[TuneMetric] = param(list, "the metrics that must keep the budget; empty: evaluate.primary_metric")
    latency_reduce: float = param(1.0, "how many times faster than FP32 in its default precision the model shall be", above=0.0)
    accuracy_weight: float = param(1.0, "weight of the accuracy in pot_loss, counted only beyond the budget", low=0.0)
    latency_weight: float = param(1.0, "weight of the latency in pot_loss", low=0.0)
    quantization_ratio_weight: float = param(0.0, "weight of the quantized share of layers in pot_loss", low=0.0)
    expected_quantization_ratio: float = param(0.5, "the share of layers above which quantization is rewarded", above=0.0, below=1.0)
    max_trials: int = param(60, "trials in total, those of earlier runs included with warm_start", low=1)
    max_minutes: float = param(0.0, "stop after trials that took this long together; 0: no limit", low=0.0)
    stop_on_target: bool = param(False, "stop at the first trial within the budget that is faster by latency_reduce")
    trials_load_method: str = param(
        "cold_start",
        "cold_start: a new search; warm_start: go on with the trials of the last one; fine_tune: a new search around the last one's"
        " best; eval: only rebuild the last one's best",
        choices=("cold_start", "warm_start", "fine_tune", "eval"),
    )
    batch_size: int = param(1, "trials that are proposed together and run in parallel; at least the number of workers", low=1)
    eval_subset_size: int | None = param(None, "evaluate only the first validation samples; null: all", low=1)
    stop_error: float = param(
        0.01,
        "a trial's evaluation stops early when its loss is beyond the budget with at most this probability of error; 0: never",
        low=0.0,
        below=0.5,
    )
    benchmark: TuneBenchmark = param(TuneBenchmark, "measurement of the latency")
    n_initial_point: int = param(10, "trials before TPE proposes: the given ones (presets, exclusions), then random ones", low=0)
    gamma: float = param(0.3, "gamma * sqrt(trials) of them, at most 25, count as good", above=0.0)
    n_EI_candidates: int = param(24, "proposals that TPE draws, of which it takes the most promising", low=1)  # noqa: N815
    seed: int | None = param(None, "seed of the search; null: `seed`", low=0)
    child_runs: bool = param(False, "log every trial as a child run in MLflow, too")


@dataclass
class BudgetMetric:
    """One metric of an accuracy budget."""

    name: str = param(MISSING, "one of the metrics in `metric`")
    baseline_value: float | None = param(None, "what to compare with instead of what FP32 reaches; for all metrics or for none")
    maximal_drop: float | None = param(None, "budget of this metric; null: accuracy_aware.maximal_drop", low=0.0)


@dataclass
class AccuracyAware:
    """Revert layers to floating point until an accuracy budget holds (POT's AccuracyAwareQuantization)."""

    enabled: bool = param(False, "search for the model that keeps the budget")
    maximal_drop: float = param(0.01, "how much worse than FP32 every metric may be", low=0.0)
    drop_type: str = param("absolute", "in the metric's own unit, or as a share of the baseline", choices=("absolute", "relative"))
    metrics: list[BudgetMetric] = param(list, "the metrics that must keep the budget; empty: all of `metric`")
    max_iter_num: int | None = param(None, "reversions to try until the budget holds; null: as many as it takes", low=1)
    max_minutes: float | None = param(None, "evaluation time after which the best model so far is the result; null: no limit", above=0.0)
    ranking_subset_size: int | None = param(None, "at most so many of the hardest samples rank layers; null: 300, or all there are", low=1)
    metric_subset_ratio: float = param(
        0.5, "share of the samples that is compared where all metrics have a baseline_value", above=0.0, high=1.0
    )
    held_out_ratio: float = param(
        0.2, "share of the validation samples that the search does not see, on which the chosen model is confirmed", low=0.0, below=1.0
    )
    use_prev_if_drop_increase: bool = param(True, "undo a reversion that makes the drop larger; false: go on from there")
    base_algorithm: str = param(
        "DefaultQuantization",
        "where the search starts: the model of correct_bias; without alignment and bias correction; or `quantizers`",
        choices=("DefaultQuantization", "MinMaxQuantization", "TunableQuantization"),
    )
    quantizers: str | None = param(None, "quantizers.json that TunableQuantization starts from, e.g. a copy of an earlier tuning result")
    convert_to_mixed_preset: bool = param(False, "first try the mixed preset in place of performance, and keep it if it is better")
    tune_hyperparams: bool = param(False, "first try other range estimators and the other bias correction, and keep them if better")
    restore: str = param(
        "activations_and_weights", "what returns to floating point in a reverted layer", choices=("activations_and_weights", "activations")
    )
    on_failure: str = param(
        "fail", "where the budget cannot be met: stop the pipeline, or go on with the best model found", choices=("fail", "keep")
    )
    quantizers_sha256: str | None = param(None, "SHA-256 of the file `quantizers`; computed, not set")


@dataclass
class Cluster:
    """Where searches evaluate their candidates."""

    kind: str = param("local", "local: threads of this process; dask: a Dask cluster", choices=("local", "dask"))
    workers: int = param(1, "candidates that are evaluated at once: local threads, or processes of a local Dask cluster", low=1)
    address: str | None = param(None, "Dask scheduler, e.g. tcp://10.0.0.1:8786; null: the stage starts a local cluster")
    start: dict[str, Any] | None = param(
        None, "a Dask cluster that the stage starts and scales to `workers`: `_target_` and its arguments, e.g. dask_jobqueue.SLURMCluster"
    )
    wait_minutes: float = param(5.0, "how long to wait for the first worker of a Dask cluster", above=0.0)


@dataclass
class Tracking:
    """Where results are logged with MLflow."""

    enabled: bool = param(True, "log to MLflow")
    tracking_uri: str = param("sqlite:///mlflow.db", "MLflow tracking URI; the environment's MLFLOW_TRACKING_URI wins")
    experiment: str = param("quantization", "MLflow experiment")
    log_models: bool = param(True, "store the FP32 and quantized IRs with the run")


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
    correction_engine: Engine | None = param(
        None, "the section `engine` where the accurate BiasCorrection or layer-wise tuning runs, null where nothing does; computed, not set"
    )
    target_device_sha256: str | None = param(None, "SHA-256 of `target_device`, by which DVC knows its tables; computed, not set")
    user_code: dict[str, str] = param(
        dict, "SHA-256 of the project's own Python files that a `_target_` names or that these import; computed, not set"
    )
    files: dict[str, dict[str, str]] = param(
        dict, "SHA-256 of every file and folder that `model`, `data` and `metric` name; computed, not set"
    )
