"""What a change of the configuration re-runs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common import artifacts
from stages.configuration.schema import Config
from tests.configuration.resolving import Resolve


def tracked(stage: dict[str, Any], config: Config) -> dict[str, Any]:
    """The parameters that a stage of dvc.yaml depends on, with their values."""
    values: dict[str, Any] = {}
    for key in itertools.chain.from_iterable(entry[str(artifacts.CONFIG)] for entry in stage.get("params", [])):
        value: Any = dataclasses.asdict(config)
        for name in key.split("."):
            value = value[name]
        values[key] = value
    return values


RERUNS: dict[str, set[str]] = {
    "quantization: {preset: mixed}": {"quantize"},
    "quantization: {preset: auto}": {"quantize"},
    "quantization: {range_estimator: {max: {aggregator: median}}}": {"quantize"},
    # Whole tensors have their 1e-4 quantiles; those of channels take a third more time and are stored on demand.
    "quantization: {range_estimator: {preset: quantile}}": {"collect_statistics", "quantize"},
    "quantization: {range_estimator: {max: {type: quantile, outlier_prob: 1e-3}}}": {"collect_statistics", "quantize"},
    "quantization: {range_estimator: {preset: mse}}": {"quantize"},
    "quantization: {range_estimator: {preset: sqnr}}": {"quantize"},
    "quantization: {range_estimator: {max: {type: percentile, outlier_prob: 1e-5}}}": {"quantize"},
    "quantization: {stat_batch_size: 8}": {"quantize"},
    "quantization: {stat_subset_size: 100}": {"collect_statistics", "quantize", "correct_bias"},
    # POT's fast bias correction reads mean outputs, which are stored for it alone.
    "quantization: {pot_compatible: true}": {"collect_statistics", "quantize", "correct_bias"},
    "collect_statistics: {inplace_statistic: true}": {"collect_statistics"},
    "quantization: {ignored: {scope: [conv]}}": {"quantize"},
    "bias_correction: {threshold: 3}": {"correct_bias"},
    "evaluate: {confidence: 0.9}": {"evaluate"},
    "evaluate: {primary_metric: character_accuracy}": {"evaluate"},
    "layerwise_tuning: {use_layerwise_tuning: true}": {"correct_bias"},
    "tracking: {experiment: other}": set(),
    "sweep: {final_timing: 0}": set(),
    "bias_correction: {use_fast_bias: false}": {"correct_bias"},
    # Only the accurate correction runs models (test_the_engine_concerns_the_accurate_bias_correction).
    "engine: {threads: 1}": {"collect_statistics", "evaluate"},
    # Statistics and corrections are computed in f32, whatever models are evaluated in.
    "engine: {inference_precision: f32}": {"evaluate"},
    "data: {calibration: {count: 30}}": {"prepare", "evaluate"},
    "target_device: {pass_through: []}": {"collect_statistics", "quantize"},
    "model: {input_shape: {x: [1, 3, 48, 640]}}": {"prepare"},
}


# Searches read nearly all of it; while they are disabled that takes them a fraction of a second.
SEARCHES = {"accuracy_aware", "tune"}
NOT_OF_SEARCHES = ("tracking", "sweep", "package", "check", "cluster", "model", "collect_statistics")
RERUNS |= {
    "accuracy_aware: {maximal_drop: 0.02}": set(),
    # Range estimators by quantiles need statistics that nothing else does.
    "accuracy_aware: {enabled: true, tune_hyperparams: true}": {"collect_statistics"},
    "tune: {max_trials: 7}": set(),
    "tune: {enabled: true, space: {tuning_scope: [layer]}}": set(),
    # Quantiles that trials may ask for are stored beforehand.
    "tune: {enabled: true}": {"collect_statistics"},
    "tune: {enabled: true, space: {estimator_tuning_scope: [aggregator]}}": set(),
    "cluster: {workers: 2}": set(),
    # What is shipped, and the limits that it must keep, change nothing of it.
    "package: {license: MIT, samples: 2}": set(),
    "check: {maximal_drop: 0.02}": set(),
}


@pytest.mark.parametrize("keys", RERUNS)
def test_a_change_reruns_only_what_it_concerns(resolve: Resolve, keys: str) -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    before, after = resolve(), resolve(keys)
    assert before != after
    section = keys.split(":")[0]
    searches = {section} & SEARCHES or (set() if section in NOT_OF_SEARCHES else SEARCHES)
    assert {name for name, stage in stages.items() if tracked(stage, before) != tracked(stage, after)} == RERUNS[keys] | searches


def test_the_engine_concerns_the_accurate_bias_correction(resolve: Resolve) -> None:
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["correct_bias"]
    accurate = "use_fast_bias: false"
    before, after = (resolve(f"bias_correction: {{{accurate}}}\nengine: {{inference_precision: {name}}}") for name in ("f32", "default"))
    assert tracked(stage, before) == tracked(stage, after)
    for keys, concerned in ((accurate, True), ("use_fast_bias: true", False), (f"{accurate}, enabled: false", False)):
        before, after = (resolve(f"bias_correction: {{{keys}}}\nengine: {{threads: {threads}}}") for threads in (1, 2))
        assert (tracked(stage, before) != tracked(stage, after)) == concerned, keys


def test_every_key_belongs_to_a_stage(resolve: Resolve) -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    config = resolve()
    used = {key.split(".")[0] for stage in stages.values() for key in tracked(stage, config)}
    # `track` always runs and reads all of it; where a search evaluates does not change what it finds; a hash stands for the tables.
    assert {field.name for field in dataclasses.fields(Config)} - used == {
        "tracking",
        "sweep",
        "package",
        "check",
        "cluster",
        "target_device",
    }
    assert stages["track"]["always_changed"]
