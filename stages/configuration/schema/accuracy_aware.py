"""The accuracy-aware search."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import MISSING, param


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
    acceptance: str = param(
        "confident",
        "confident: the budget is to hold on new samples, too, with evaluate.confidence, where samples suffice, else on these;"
        " point: on these, as in POT",
        choices=("point", "confident"),
    )
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
