"""The search with TPE."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import MISSING, param
from stages.configuration.schema.quantization import PRESETS

TUNING_SCOPE = ("layer", "bits", "mode", "granularity", "range_estimator")
ESTIMATOR_TUNING_SCOPE = ("preset", "type", "outlier_prob", "aggregator")


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
    strategy: str = param(
        "tpe",
        "tpe: given trials, then plans, then TPE; plan: no more than given trials and plans, in minutes instead of hours",
        choices=("tpe", "plan"),
    )
    plans: int = param(
        4, "plans to evaluate, made of each layer's noise and time; 0: none, and with strategy plan only given trials", low=0
    )
    objective: str = param(
        "pot_loss",
        "pot_loss: POT's formula of accuracy, latency and quantized share; constrained: the fastest within the budget",
        choices=("pot_loss", "constrained"),
    )
    accuracy_loss: float = param(1.0, "the budget: relative loss of the metrics in percent", low=0.0)
    metrics: list[TuneMetric] = param(list, "the metrics that must keep the budget; empty: evaluate.primary_metric")
    acceptance: str = param(
        "confident",
        "confident: the budget is to hold on new samples, too, with evaluate.confidence, where samples suffice, else on these;"
        " point: on these, as in POT",
        choices=("point", "confident"),
    )
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
