"""POT's section `compression`: the device, and the algorithms with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.common.errors import UserError
from stages.pot.quantizers import translate_ignored, translate_schemes
from stages.pot.result import NEEDLESS, Translation, section_of

COMPRESSION = {
    "inplace_statistics": NEEDLESS
    + "statistics are always computed inside the graph where that is possible; collect_statistics.inplace_statistic spares more memory",
    "dump_intermediate_model": NEEDLESS + "build/quantize holds the model before bias correction, always",
}
SAMPLING = {
    "stat_subset_size": "quantization.stat_subset_size",
    "shuffle_data": "data.shuffle",
    "seed": "seed",
    "stat_batch_size": "quantization.stat_batch_size",
    "inplace_statistic": COMPRESSION["inplace_statistics"],
    "inplace_statistics": COMPRESSION["inplace_statistics"],
}
BIASES = {
    "use_fast_bias": "bias_correction.use_fast_bias",
    "threshold": "bias_correction.threshold",
    "apply_for_all_nodes": "bias_correction.apply_for_all_nodes",
}
QUANTIZERS = {"saturation_fix": "quantization.saturation_fix"}
LAYERWISE = {
    "use_layerwise_tuning": "layerwise_tuning.use_layerwise_tuning",
    "optimizer": "layerwise_tuning.optimizer",
    "weight_decay": "layerwise_tuning.weight_decay",
    "calibration_indices_pool": "layerwise_tuning.calibration_indices_pool",
    "loss": NEEDLESS + "the loss is the squared error, POT's only one",
    "num_samples_for_tuning": "counts output positions here, not whole samples; the default serves most models",
    "batch_size": "counts output positions here, not whole samples; the default serves most models",
    "tuning_iterations": NEEDLESS + "POT accepted it and never read it",
    "random_seed": NEEDLESS + "POT accepted it and never read it",
    "use_ranking_subset": "all samples of the pool are used alike",
    "calculate_grads_on_loss_increase_only": NEEDLESS + "gradients are always computed: here they cost little",
}
ACCURACY_AWARE = {
    "maximal_drop": "accuracy_aware.maximal_drop",
    "drop_type": "accuracy_aware.drop_type",
    "max_iter_num": "accuracy_aware.max_iter_num",
    "ranking_subset_size": "accuracy_aware.ranking_subset_size",
    "metric_subset_ratio": "accuracy_aware.metric_subset_ratio",
    "use_prev_if_drop_increase": "accuracy_aware.use_prev_if_drop_increase",
    "base_algorithm": "accuracy_aware.base_algorithm",
    "convert_to_mixed_preset": "accuracy_aware.convert_to_mixed_preset",
    "tune_hyperparams": "accuracy_aware.tune_hyperparams",
    "annotation_free": "labels made from the FP32 model's outputs: use the metric reference_error, which needs none",
    "annotation_conf_threshold": "belongs to annotation_free",
}
TUNABLE = {
    "tuning_scope": "tune.space.tuning_scope",
    "estimator_tuning_scope": "tune.space.estimator_tuning_scope",
    "outlier_prob_choices": "tune.space.outlier_prob_choices",
}

ALGORITHMS = {
    "DefaultQuantization",
    "AccuracyAwareQuantization",
    "TunableQuantization",
    "MinMaxQuantization",
    "ActivationChannelAlignment",
    "FastBiasCorrection",
    "BiasCorrection",
}
DEVICES = {"VPU": "npu", "GNA3": "gna", "GNA3.5": "gna"}  # others by their own names
DEVICE_OPTIONS = ("any", "cpu", "cpu_spr", "gpu", "npu", "gna")
PRESET_ALIASES = {"symmetric": "performance", "asymmetric": "accuracy"}


def translate_compression(result: Translation, compression: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    place = "compression"
    handled = ("target_device", "model_type", "algorithms")
    result.by_table(compression, COMPRESSION, place, handled)
    device = compression.get("target_device", "ANY")
    option = DEVICES.get(str(device).upper(), str(device).lower())
    if option not in DEVICE_OPTIONS:
        result.leave(f"{place}.target_device", device, f"the devices are {', '.join(DEVICE_OPTIONS)}; any is taken")
        option = "any"
    elif option != str(device).lower():
        result.change(f"{place}.target_device", device, f"target_device {option}")
    result.options["target_device"] = option
    kind = str(compression.get("model_type") or "none").lower()
    if kind != "none":
        result.put(f"{place}.model_type", kind, "quantization.model_type")
    algorithms = compression.get("algorithms")
    if not isinstance(algorithms, list):
        result.leave(f"{place}.algorithms", algorithms, "a list of algorithms is expected here")
        algorithms = []
    named = {}
    for index, entry in enumerate(algorithms):
        key = f"{place}.algorithms[{index}]"
        entry = section_of(result, entry, key)
        named[str(entry.get("name"))] = f"{key}.params", section_of(result, entry.get("params"), f"{key}.params")
    strange = named.keys() - ALGORITHMS - {"None"}
    if strange and not named.keys() & ALGORITHMS:
        names, known = ", ".join(map(repr, sorted(strange))), ", ".join(sorted(ALGORITHMS))
        raise UserError(f"{place}.algorithms: {names} cannot be carried over; the algorithms are {known}")
    complete = {"DefaultQuantization", "AccuracyAwareQuantization"} & named.keys()
    if not complete:  # a pipeline of single steps does nothing but those
        result.values["quantization.use_channel_alignment"] = "ActivationChannelAlignment" in named
        result.values["bias_correction.enabled"] = bool({"FastBiasCorrection", "BiasCorrection"} & named.keys())
    for name, (key, params) in named.items():
        _algorithm(result, name, params, key, option, searched=optimizer.get("name") == "Tpe")


def _algorithm(result: Translation, name: str, params: Mapping[str, Any], place: str, device: str, *, searched: bool) -> None:
    steps = ("weights", "activations", "range_estimator", "ignored", "preset", "metrics")
    if name == "ActivationChannelAlignment":
        result.by_table(params, {**SAMPLING, "ignored": NEEDLESS + "POT accepted it and never read it"}, place)
        return
    if name in ("FastBiasCorrection", "BiasCorrection"):
        result.values["bias_correction.use_fast_bias"] = name == "FastBiasCorrection"
        result.by_table(params, {**SAMPLING, **BIASES, "ignored": NEEDLESS + "bias correction follows what is quantized"}, place)
        return
    tables: dict[str, dict[str, str]] = {
        "MinMaxQuantization": {**SAMPLING, **QUANTIZERS},
        "DefaultQuantization": {**SAMPLING, **QUANTIZERS, **BIASES, **LAYERWISE},
        "AccuracyAwareQuantization": {**SAMPLING, **QUANTIZERS, **BIASES, **LAYERWISE, **ACCURACY_AWARE},
        "TunableQuantization": {**SAMPLING, **QUANTIZERS, **TUNABLE},
    }
    if name not in tables:
        result.leave(
            place.removesuffix(".params") + ".name", name, f"the algorithms are {', '.join(tables)} and the steps of DefaultQuantization"
        )
        return
    if name == "AccuracyAwareQuantization":
        result.put(f"{place.removesuffix('.params')}.name", True, "accuracy_aware.enabled")
        # POT kept what it had found, within the budget or not.
        result.put(f"{place.removesuffix('.params')}.name", "keep", "accuracy_aware.on_failure")
        result.put(f"{place.removesuffix('.params')}.name", "point", "accuracy_aware.acceptance")
        _metrics(result, params, place)
    if name == "TunableQuantization" and not searched:
        result.change(place.removesuffix(".params") + ".name", name, "MinMaxQuantization: nothing is tuned without the optimizer Tpe")
    result.by_table(params, tables[name], place, steps)
    _preset(result, params, place, device)
    translate_schemes(result, params, place)
    translate_ignored(result, params.get("ignored"), f"{place}.ignored")


def _preset(result: Translation, params: Mapping[str, Any], place: str, device: str) -> None:
    if "preset" not in params:
        return
    given = str(params["preset"])
    preset = PRESET_ALIASES.get(given, given)
    if preset == "accuracy" and device not in ("gna", "npu"):
        preset = "mixed"  # as POT's command line read it
    if preset == "mixed" and device == "gna":
        preset = "accuracy"
    if preset != given:
        result.change(
            f"{place}.preset", given, f"quantization.preset {preset}: that is how POT's command line read it for {device.upper()}"
        )
    result.put(f"{place}.preset", preset, "quantization.preset")


def _metrics(result: Translation, params: Mapping[str, Any], place: str) -> None:
    metrics = params.get("metrics")
    if metrics is not None:
        reason = "name the metrics of `metric` in accuracy_aware.metrics; without it, all of them must keep the budget"
        result.leave(f"{place}.metrics", metrics, reason)
