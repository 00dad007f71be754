"""POT's configurations for tests, modelled on its documented templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.pot.result import Translation
from stages.pot.translation import translate

SIMPLIFIED = """\
/* Post-training optimization
   of a made-up network */
{
    "model": {
        "model_name": "smallnet",
        "model": "models/net.xml",   // the IR: "models//net.xml" is the same
        "weights": "models/net.bin",
    },
    "engine": {
        "type": "simplified",
        "layout": "NCHW",
        "data_source": "images", /* no labels */
    },
    "compression": {
        "target_device": "CPU",
        "algorithms": [
            {
                "name": "DefaultQuantization",
                "params": {"preset": "accuracy", "stat_subset_size": 4, "shuffle_data": true, "seed": 3,},
            },
        ],
    },
}
"""
FULL: dict[str, Any] = {
    "preset": "mixed",
    "stat_subset_size": 300,
    "stat_batch_size": 8,
    "use_fast_bias": False,
    "threshold": 500,
    "apply_for_all_nodes": True,
    "saturation_fix": "all",
    "ignored": {
        "scope": ["/head/Conv", ["/loop", "/loop/inner"]],
        "operations": [{"type": "Add", "attributes": {"auto_broadcast": "numpy"}}, {"type": "Multiply"}],
    },
    "range_estimator": {"preset": "quantile"},
    "weights": {
        "bits": 8,
        "mode": "symmetric",
        "granularity": "perchannel",
        "level_low": -127,
        "level_high": 127,
        "range_estimator": {"min": {"type": "min"}, "max": {"type": "quantile", "outlier_prob": 0.0001, "aggregator": "max"}},
    },
    "activations": {
        "mode": "asymmetric",
        "level_low": 0,
        "range_estimator": {
            "min": {"type": "quantile", "outlier_prob": 0.001, "aggregator": "mean", "clipping_value": 0},
            "max": {"type": "max", "aggregator": "hl_estimator", "outlier_prob": 0.01, "granularity": "pertensor"},
        },
    },
}


def configuration(*algorithms: dict[str, Any], optimizer: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A POT configuration with the model of every test."""
    content: dict[str, Any] = {
        "model": {"model_name": "smallnet", "model": "models/net.xml", "weights": "models/net.bin"},
        "engine": {"type": "simplified", "data_source": "images", "layout": "NCHW"},
        "compression": {"target_device": "ANY", "algorithms": list(algorithms)},
    }
    return content | ({"optimizer": optimizer} if optimizer else {}) | sections


def default(**params: Any) -> dict[str, Any]:
    return {"name": "DefaultQuantization", "params": params}


def translated(*algorithms: dict[str, Any], **sections: Any) -> Translation:
    return translate(configuration(*algorithms, **sections), Path("nowhere"))


def left(translation: Translation) -> dict[str, str]:
    """Why keys were left behind, by the last two parts of their names."""
    return {".".join(remark.key.split(".")[-2:]): remark.text for remark in translation.left}


AWARE: dict[str, Any] = {
    "maximal_drop": 0.005,
    "drop_type": "relative",
    "max_iter_num": 20,
    "ranking_subset_size": 100,
    "metric_subset_ratio": 0.4,
    "use_prev_if_drop_increase": False,
    "base_algorithm": "DefaultQuantization",
    "convert_to_mixed_preset": True,
    "tune_hyperparams": True,
}
TPE: dict[str, Any] = {
    "max_trials": 200,
    "max_minutes": 10,
    "stop_on_target": True,
    "trials_load_method": "cold_start",
    "accuracy_loss": 0.1,
    "latency_reduce": 1.5,
    "accuracy_weight": 1.0,
    "latency_weight": 0.5,
    "quantization_ratio_weight": 1.0,
    "expected_quantization_ratio": 0.8,
    "eval_subset_size": 2000,
}
