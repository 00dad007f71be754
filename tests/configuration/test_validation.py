"""What is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from stages.common.errors import ConfigError
from tests.configuration.resolving import Resolve

REFUSED: dict[str, tuple[str, ...]] = {
    "layerwise_tuning: {use_layerwise_tuning: true, batch_size: 100, num_samples_for_tuning: 50}": (
        "layerwise_tuning.batch_size",
        "100",
        "50",
    ),
    "layerwise_tuning: {use_layerwise_tuning: true, learning_rate: {weights: 0, bias: 0, weight_fq: 0, input_fq: 0}}": (
        "layerwise_tuning.learning_rate",
        "some rate above 0",
    ),
    "layerwise_tuning: {optimizer: RMSprop}": ("layerwise_tuning.optimizer", "RMSprop", "Adam, SGD"),
    "quantization:": ("quantization: null", "section"),
    "quantization: {stat_subset_size: 0}": ("0 is not allowed", "at least 1"),
    "quantization: {stat_subset_size: 3.5}": ("3.5", "integer"),
    "quantization: {stat_subset_size: true}": ("true", "integer"),
    "quantization: {saturation_fix: yes}": ("saturation_fix: true", "first_layer, all, no"),
    "bias_correction: {threshold: .nan}": ("bias_correction.threshold: nan", "above 0.0"),
    "bias_correction: {threshold: 0}": ("0", "above 0.0"),
    "bias_correction: {enabled: 1}": ("true or false",),
    "model: {name: 5}": ("model.name: 5", "text"),
    "model: {sha256: abc}": ("model.sha256: 'abc'", "64 hexadecimal digits"),
    "model: {package: {member: null}}": ("model.package.member: null",),
    "model: {package: {requirement: 'net>=1'}}": ("model.package.requirement: 'net>=1'", "exact version"),
    "model: {input_shape: {x: [1, a]}}": ("model.input_shape.x[1]: 'a'", "integer"),
    "model: {input_shape: {x: [1, 0]}}": ("model.input_shape.x", "positive"),
    "quantization: {ignored: {scope: conv1}}": ("quantization.ignored.scope: 'conv1'", "a list"),
    "quantization: {ignored: {scope: ['re:(']}}": ("quantization.ignored.scope[0]", "regular expression"),
    "quantization: {ignored: {operations: [{typ: Add}]}}": ("quantization.ignored.operations[0].typ", "did you mean 'type'"),
    "quantization: {ignored: {operations: [{attributes: {}}]}}": ("quantization.ignored.operations[0].type", "must be given"),
    "quantization: {weights: {level_low: 5, level_high: 5}}": ("level_low: 5", "less than"),
    "quantization: {weights: {bits: 4, level_low: -127, level_high: 127}}": ("quantization.weights.bits: 4", "255 levels"),
    "quantization: {weights: {bits: 4}}": (
        "quantization.weights: bits=4 cannot run on the target",
        "offers: 8-bit symmetric perchannel [-127, 127]; 8-bit asymmetric perchannel (",
        "allow_unsupported",
    ),
    "quantization: {weights: {level_low: -8, level_high: 7}}": ("level_low=-8, level_high=7 cannot run on the target",),
    "quantization: {activations: {bits: 16, mode: symmetric}}": (
        "quantization.activations: bits=16, mode=symmetric cannot run",
        "8-bit symmetric pertensor; 8-bit asymmetric pertensor; 8-bit symmetric perchannel; 8-bit asymmetric perchannel",
    ),
    "quantization: {range_estimator: {min: {type: max}}}": ("min.type: 'max'", "min, quantile"),
    "quantization: {range_estimator: {max: {type: min}}}": ("max.type: 'min'", "max, abs_max"),
    "quantization: {range_estimator: {min: {type: min, outlier_prob: 0.1}}}": ("min.outlier_prob: 0.1", "not quantile"),
    "quantization: {range_estimator: {max: {outlier_prob: 0.1}}}": ("max.outlier_prob: 0.1",),
    "quantization: {range_estimator: {max: {type: quantile, outlier_prob: 0.5}}}": ("max.outlier_prob: 0.5", "below 0.5"),
    "quantization: {range_estimator: {max: {type: percentile}}}": ("max.outlier_prob: null", "type is 'percentile'"),
    "quantization: {range_estimator: {max: {type: histogram, outlier_prob: 0.1}}}": ("max.outlier_prob: 0.1", "not quantile"),
    "quantization: {range_estimator: {max: {type: entropy, aggregator: max}}}": ("max.aggregator: 'max'", "all samples together"),
    "quantization: {range_estimator: {preset: mse, min: {aggregator: max}}}": ("min.aggregator: 'max'", "preset is 'mse'"),
    "quantization: {range_estimator: {preset: sqnr, max: {aggregator: max}}}": ("max.aggregator: 'max'", "preset is 'sqnr'"),
    "quantization: {preset: auto, pot_compatible: true}": (
        "quantization.preset: 'auto'",
        "one of performance, mixed, accuracy with quantization.pot_compatible: true",
    ),
    "quantization: {weights: {range_estimator: {max: {type: sqnr}}}}": ("weights.range_estimator.max.type: 'sqnr'", "histogram"),
    "quantization: {weights: {range_estimator: {max: {type: entropy}}}}": ("weights.range_estimator.max.type: 'entropy'", "histogram"),
    "quantization: {range_estimator: {min: {clipping_value: 1}, max: {clipping_value: 1}}}": ("clipping_value", "less than"),
    "quantization: {weights: {range_estimator: {max: {aggregator: mean}}}}": ("weights.range_estimator.max.aggregator", "null"),
    "quantization: {weights: {mode: symmetric, range_estimator: {min: {type: min}}}}": ("weights.range_estimator.min", "'symmetric'"),
    "collect_statistics: {outlier_probs: [1]}": ("collect_statistics.outlier_probs[0]: 1.0", "below 0.5"),
    "target_device: {operations: {MatMul: {weights: w9}}}": ("target_device.operations.MatMul.weights", "w9"),
    "evaluate: {primary_metric: speed}": ("evaluate.primary_metric: 'speed'", "exact_match, character_accuracy"),
    "metric: {mine: 5}": ("metric.mine: 5", "_target_"),
    "metric: {mine: {top_k: 5}}": ("metric.mine", "_target_"),
    "data: {calibration: {count: many}}": ("data.calibration.count: 'many'", "an integer"),
    "data: {calibration: {_target_: TextLines}}": ("data.calibration._target_: 'TextLines'", "dotted name"),
    "data: {calibration: {_target_: stages.runtime.text_lines.TextLines}}": ("stages.runtime has ctc, ", "datasets"),
    "data: {calibration: {_target_: stages.runtime.datasets.TextLine}}": ("did you mean 'TextLines'",),
    "accuracy_aware: {maximal_drop: -0.01}": ("accuracy_aware.maximal_drop: -0.01", "at least 0.0"),
    "accuracy_aware: {metrics: [{name: exact_match, maximal_drop: -1}]}": ("accuracy_aware.metrics[0].maximal_drop: -1", "at least 0.0"),
    "accuracy_aware: {quantizers_sha256: abc}": ("accuracy_aware.quantizers_sha256: 'abc'", "it is computed"),
    "target_device_sha256: abc": ("target_device_sha256: 'abc'", "it is computed"),
    "accuracy_aware: {metrics: [{name: exact_macth}]}": (
        "accuracy_aware.metrics[0].name: 'exact_macth'",
        "exact_match, character_accuracy",
    ),
    "accuracy_aware: {metrics: [{name: exact_match}, {name: exact_match}]}": ("accuracy_aware.metrics[1].name", "only once"),
    "accuracy_aware: {metrics: [{name: exact_match, baseline_value: 0.9}, {name: character_accuracy}]}": (
        "accuracy_aware.metrics[1].baseline_value: null",
        "for all or for none",
    ),
    "accuracy_aware: {drop_type: relative, metrics: [{name: exact_match, baseline_value: 0}]}": ("baseline_value: 0.0", "'relative'"),
    "accuracy_aware: {ranking_subset_size: 50}\ndata: {validation_size: 40}": ("ranking_subset_size: 50", "validation_size, which is 40"),
    "accuracy_aware: {base_algorithm: TunableQuantization}": ("accuracy_aware.quantizers: null", "existing file"),
    "accuracy_aware: {quantizers: params.yaml}": ("accuracy_aware.quantizers: 'params.yaml'", "'DefaultQuantization'"),
    "accuracy_aware: {convert_to_mixed_preset: true}\nquantization: {preset: mixed}": ("convert_to_mixed_preset: true", "'mixed'"),
    "seed: ${nope}": ("seed", "'nope' not found"),
    "data: {calibration: {_target_: conf.my_data.Mine}}": ("'conf.my_data.Mine' cannot be found",),
    "cluster: {start: {_target_: dask.distributed.LocalCluster}}": ("cluster.start", "cluster.kind is 'local'"),
    "cluster: {kind: dask, start: {_target_: nowhere.Cluster}}": ("cluster.start._target_", "nowhere"),
    "cluster: {kind: dask, address: 'tcp://a:1', start: {_target_: pathlib.Path}}": ("cluster.address", "a cluster of its own"),
    "tracking: {register: a/b}": ("tracking.register: 'a/b'", "a name of letters"),
    "tracking: {register: a, log_models: false}": ("tracking.register: 'a'", "tracking.log_models is false"),
    "package: {model: mixed}": ("package.model: 'mixed'", "best, int8, accuracy_aware, tune, fp32"),
    "package: {name: ../mine}": ("package.name: '../mine'", "file name"),
    "package: {version: 0}": ("package.version: 0", "at least 1"),
    "package: {samples: -1}": ("package.samples: -1", "at least 0"),
    "check: {metrics: {recall: 0.1}}": ("check.metrics.recall", "one of the metrics that are computed"),
    "check: {metrics: {exact_match: -0.1}}": ("check.metrics.exact_match: -0.1", "at least 0"),
    "check: {maximal_drop: -0.1}": ("check.maximal_drop: -0.1", "at least 0"),
    "check: {minimal_speed_up: 0}": ("check.minimal_speed_up: 0", "above 0"),
    "check: {maximal_size_mb: 0}": ("check.maximal_size_mb: 0", "above 0"),
    "check: {maximal_fidelity: 0}": ("check.maximal_fidelity: 0", "above 0"),
    "tune: {space: {tuning_scope: [layers]}}": ("tune.space.tuning_scope[0]: 'layers'", "did you mean 'layer'"),
    "tune: {space: {tuning_scope: []}}": ("tune.space.tuning_scope: []", "at least one of layer"),
    "tune: {space: {estimator_tuning_scope: [max]}}": ("tune.space.estimator_tuning_scope[0]: 'max'", "preset, type"),
    "tune: {space: {estimator_tuning_scope: []}}": ("tune.space.estimator_tuning_scope: []", "with range_estimator"),
    "tune: {space: {estimator_tuning_scope: [outlier_prob]}}": ("tune.space.outlier_prob_choices: []", "at least one number"),
    "tune: {space: {outlier_prob_choices: [0.5]}}": ("tune.space.outlier_prob_choices[0]: 0.5", "below 0.5"),
    "tune: {space: {include: ['re:(']}}": ("tune.space.include[0]", "regular expression"),
    "tune: {space: {exclude: ['re:[']}}": ("tune.space.exclude[0]", "regular expression"),
    "tune: {space: {stat_subset_size: 9}}\nquantization: {stat_subset_size: 8}": ("tune.space.stat_subset_size: 9", "at most 8"),
    "tune: {accuracy_loss: -1}": ("tune.accuracy_loss: -1", "at least 0.0"),
    "tune: {accuracy_weight: 0, latency_weight: 0}": (
        "tune.accuracy_weight",
        "tune.quantization_ratio_weight: 0 is not allowed for all of them",
    ),
    "tune: {expected_quantization_ratio: 1}": ("tune.expected_quantization_ratio: 1", "below 1.0"),
    "tune: {metrics: [{name: accuracy}]}": ("tune.metrics[0].name: 'accuracy'", "exact_match, character_accuracy"),
    "tune: {metrics: [{name: exact_match}, {name: exact_match}]}": ("tune.metrics[1].name: 'exact_match'", "not in the list already"),
    "tune: {metrics: [{name: exact_match, baseline_value: 0}]}": ("tune.metrics[0].baseline_value: 0", "other than 0"),
    "tune: {eval_subset_size: 9}\ndata: {validation_size: 8}": ("tune.eval_subset_size: 9", "at most data.validation_size, which is 8"),
    "tune: {benchmark: {requests: 2}}": ("tune.benchmark.requests: 2", "tune.benchmark.hint is 'latency'"),
    "tune: {trials_load_method: hot_start}": ("tune.trials_load_method: 'hot_start'", "cold_start, warm_start, fine_tune, eval"),
}


@pytest.mark.parametrize("keys", REFUSED)
def test_refused(resolve: Resolve, keys: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(keys)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in REFUSED[keys] if word not in message] == [], message


ACCEPTED: dict[str, Any] = {
    "quantization: {saturation_fix: no}": ("quantization", "saturation_fix", "no"),
    "bias_correction: {threshold: 5}": ("bias_correction", "threshold", 5.0),
    "data: {validation: null}": ("data", "validation", None),
    "quantization: {activations: {mode: symmetric}, preset: mixed}": ("quantization", "preset", "mixed"),
    "quantization: {weights: {bits: 4}, allow_unsupported: true}": ("quantization", "allow_unsupported", True),
    "tracking: {tracking_uri: mlruns, enabled: false}": ("tracking", "enabled", False),
    "seed: 7": (None, "seed", 7),
}


@pytest.mark.parametrize("keys", ACCEPTED)
def test_accepted(resolve: Resolve, keys: str) -> None:
    section, name, value = ACCEPTED[keys]
    config = resolve(keys)
    found = getattr(getattr(config, section) if section else config, name)
    assert (found, type(found)) == (value, type(value))
