"""The configuration: what composes, what is refused with which words, and what a change of it re-runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.config import completed, compose, create, load_config, main
from stages.configuration.schema import Config
from stages.configuration.validation import checked
from tests.project import Project

EXAMPLE = ("model: ppocrv4_rec", "data: text_lines", "metric: text")

Resolve = Callable[..., Config]


@pytest.fixture
def resolve(project: Project, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Write params.yaml from keys and group choices, and return what the `config` stage would make of it."""
    monkeypatch.chdir(project.root)

    def resolved(keys: str = "", *choices: str, overrides: tuple[str, ...] = ()) -> Config:
        project.params(keys, *(choices or EXAMPLE))
        return completed(checked(compose(overrides)))

    return resolved


# ------------------------------------------------------------------------------------------------ through `dvc repro`

# One case per kind of mistake: keys of params.yaml, group choices, and what the line says: key, value, what is allowed.
MISTAKES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "value that is not a choice": (
        "quantization: {preset: fast}",
        EXAMPLE,
        ("quantization.preset", "'fast'", "performance, mixed, accuracy"),
    ),
    "value out of range": ("evaluate: {confidence: 1.5}", EXAMPLE, ("evaluate.confidence", "1.5", "above 0.0 and below 1.0")),
    "wrong type": ("quantization: {stat_subset_size: many}", EXAMPLE, ("quantization.stat_subset_size", "'many'", "integer")),
    "unknown key": ("quantization: {presett: mixed}", EXAMPLE, ("quantization.presett", "'mixed'", "did you mean 'preset'")),
    "unknown section": ("bias_corection: {enabled: false}", EXAMPLE, ("bias_corection", "did you mean 'bias_correction'")),
    "wrong group option": ("", ("model: ppocrv5",), ("model", "'ppocrv5'", "local, ppocrv4_rec")),
    "unknown group": ("", ("modell: local",), ("'modell'", "did you mean 'model'")),
    "option instead of a section": ("model: local", EXAMPLE, ("model", "'local'", "override /model: local")),
    "mandatory value missing": ("", ("model: local",), ("model.path", "???", "must be given")),
    "model file missing": ("model: {path: net.onnx}", ("model: local", *EXAMPLE[1:]), ("model.path", "'net.onnx'", "existing file")),
    "data file missing": ("data: {calibration: {path: a.npz}}", (EXAMPLE[0], "data: arrays"), ("data.calibration.path", "'a.npz'")),
    "path and package": ("model: {path: params.yaml}", EXAMPLE, ("model.path", "model.package.requirement", "only one of the two")),
    "neither path nor package": ("model: {path: null}", ("model: local", *EXAMPLE[1:]), ("model.path", "null", "one of the two")),
    "package without sha256": ("model: {sha256: null}", EXAMPLE, ("model.sha256", "null", "64 hexadecimal digits")),
    "one level of two": ("quantization: {weights: {level_low: -127}}", EXAMPLE, ("weights.level_high", "null", "level_low is -127")),
    "quantile without probability": (
        "quantization: {range_estimator: {max: {type: quantile}}}",
        EXAMPLE,
        ("quantization.range_estimator.max.outlier_prob", "null", "above 0.0 and below 0.5"),
    ),
    "more statistics than samples": (
        "quantization: {stat_subset_size: 300}\ndata: {calibration_size: 200}",
        EXAMPLE,
        ("quantization.stat_subset_size", "300", "data.calibration_size, which is 200"),
    ),
    "unknown argument of a class": ("data: {calibration: {cuont: 3}}", EXAMPLE, ("data.calibration.cuont", "3", "did you mean 'count'")),
    "required argument missing": (
        "data: {validation: {_target_: stages.runtime.datasets.Arrays}}",
        (EXAMPLE[0], "data: custom"),
        ("data.calibration._target_", "???"),
    ),
    "class that does not exist": (
        "metric: {exact_match: {_target_: stages.runtime.metrics.ExactMatches}}",
        EXAMPLE,
        ("metric.exact_match._target_", "ExactMatches", "did you mean 'ExactMatch'"),
    ),
    "module that does not exist": ("metric: {m: {_target_: nowhere.M}}", EXAMPLE, ("metric.m._target_", "'nowhere.M'", "no module")),
    "scheme that the target lacks": ("quantization: {weights: {bits: 4}}", EXAMPLE, ("quantization.weights", "bits=4", "8-bit symmetric")),
    "an address for no cluster": ("cluster: {address: 'tcp://a:1'}", EXAMPLE, ("cluster.address", "'tcp://a:1'", "'local'")),
    "no address": ("cluster: {kind: dask, address: a}", EXAMPLE, ("cluster.address", "'a'", "tcp://")),
    "MLflow's file store": ("tracking: {tracking_uri: mlruns}", EXAMPLE, ("tracking.tracking_uri", "'mlruns'", "sqlite:///")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_stops_repro_with_one_line(project: Project, mistake: str) -> None:
    keys, choices, words = MISTAKES[mistake]
    project.params(keys, *choices)
    outcome = project.repro()
    assert outcome.code != 0
    assert len(outcome.errors) == 1, outcome.output
    assert outcome.errors[0].startswith("config: error: ")
    assert [word for word in words if word not in outcome.errors[0]] == [], outcome.errors[0]
    assert outcome.stages == ["config"]
    assert "Traceback" not in outcome.output
    # Nothing is left but the lock.
    assert [path.name for path in (project.root / "build").iterdir()] in ([], [".lock"])


def test_corrected_mistake_builds(project: Project) -> None:
    project.params("quantization: {preset: fast}", *EXAMPLE)
    assert project.repro("config").code != 0
    project.params("quantization: {preset: mixed, saturation_fix: no}", *EXAMPLE)
    outcome = project.repro("config")
    assert (outcome.code, outcome.errors) == (0, []), outcome.output
    written = yaml.safe_load((project.root / artifacts.CONFIG).read_text())
    assert written["quantization"]["preset"] == "mixed"
    # An unquoted `no` is false for YAML, but means POT's "no".
    assert written["quantization"]["saturation_fix"] == "no"


def test_same_configuration_gives_same_bytes(project: Project) -> None:
    assert project.repro("config").code == 0
    first = (project.root / artifacts.CONFIG).read_bytes()
    again = project.repro("config")
    assert (again.code, again.stages) == (0, ["config"])
    assert (project.root / artifacts.CONFIG).read_bytes() == first


def test_broken_yaml_in_conf_names_file_and_line(project: Project) -> None:
    project.write("conf/engine/default.yaml", "device: CPU\nthreads: [1\n")
    outcome = project.repro("config")
    assert outcome.code != 0
    assert len(outcome.errors) == 1
    assert "conf/engine/default.yaml, line 3" in outcome.errors[0]


# ------------------------------------------------------------------------------------------------ in this process

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
    "data: {calibration: {_target_: stages.runtime.text_line.TextLines}}": ("did you mean 'text_lines'",),
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


def test_outlier_probs_follow_the_estimators_of_activations(resolve: Resolve) -> None:
    assert resolve().collect_statistics.outlier_probs == [1e-4]
    both = "{min: {type: quantile, outlier_prob: 1e-3}, max: {type: abs_quantile, outlier_prob: 1e-5}}"
    for keys in (f"quantization: {{range_estimator: {both}}}", f"quantization: {{activations: {{range_estimator: {both}}}}}"):
        found = resolve(keys).collect_statistics
        assert found.outlier_probs == found.channel_outlier_probs == [1e-3]
    # Weights are no statistics.
    weights = "{max: {type: quantile, outlier_prob: 1e-2}}"
    assert resolve(f"quantization: {{weights: {{range_estimator: {weights}}}}}").collect_statistics.outlier_probs == [1e-4]
    assert resolve("collect_statistics: {outlier_probs: [1e-2, 1e-3]}").collect_statistics.outlier_probs == [1e-2]


ENOUGH = "collect_statistics: {outlier_probs: [1e-2], channel_outlier_probs: [1e-2]}\nquantization: "
ESTIMATORS = [
    "{range_estimator: {preset: quantile}}",
    "{range_estimator: {preset: quantile, max: {outlier_prob: 5e-3, aggregator: max}, min: {outlier_prob: 1e-2}}}",
    "{activations: {range_estimator: {max: {type: quantile, outlier_prob: 1e-6}}}}",
    "{preset: mixed, range_estimator: {max: {aggregator: hl_estimator, clipping_value: 6}}}",
    "{preset: accuracy, weights: {range_estimator: {max: {type: quantile, outlier_prob: 0.2}}}}",
    "{use_channel_alignment: false, saturation_fix: all, model_type: transformer, stat_batch_size: 4}",
]


SCOPE = "tuning_scope: [{0}], estimator_tuning_scope: [type, {1}], outlier_prob_choices: [1e-2, 1e-5]"
TUNED = SCOPE.format("range_estimator", "outlier_prob")


def test_quantiles_that_a_search_may_ask_for_are_stored(resolve: Resolve) -> None:
    for keys, stored in {
        f"tune: {{enabled: true, space: {{{TUNED}}}}}": 1e-2,
        f"tune: {{enabled: false, space: {{{TUNED}}}}}": 1e-4,
        f"tune: {{enabled: true, space: {{{SCOPE.format('range_estimator', 'aggregator')}}}}}": 1e-4,
        "accuracy_aware: {enabled: true, tune_hyperparams: true}": 1e-3,
        "accuracy_aware: {enabled: false, tune_hyperparams: true}": 1e-4,
    }.items():
        assert resolve(keys).collect_statistics.outlier_probs == [stored], keys
    assert resolve(f"tune: {{enabled: true, space: {{{TUNED}}}}}").collect_statistics.channel_outlier_probs == [1e-2]
    nothing_of_it = SCOPE.format("layer", "outlier_prob")
    assert resolve(f"tune: {{enabled: true, space: {{{nothing_of_it}}}}}").collect_statistics.channel_outlier_probs == []


def test_another_content_of_the_quantizers_to_start_from_is_another_search(resolve: Resolve, project: Project) -> None:
    keys = "accuracy_aware: {base_algorithm: TunableQuantization, quantizers: conf/mine.json}"
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["accuracy_aware"]
    project.write("conf/mine.json", "{}")
    before = tracked(stage, resolve(keys))
    assert tracked(stage, resolve(keys)) == before
    project.write("conf/mine.json", "{ }")
    assert tracked(stage, resolve(keys)) != before


def test_where_enough_is_stored_no_estimator_collects_again(resolve: Resolve) -> None:
    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["collect_statistics"]
    before = tracked(stage, resolve(ENOUGH + "{}"))
    assert all(tracked(stage, resolve(ENOUGH + keys)) == before for keys in ESTIMATORS)
    assert tracked(stage, resolve(ENOUGH + "{range_estimator: {preset: quantile, max: {outlier_prob: 0.02}}}")) != before


def test_primary_metric_is_the_first_or_the_named_one(resolve: Resolve) -> None:
    assert resolve().evaluate.primary_metric == "exact_match"
    assert resolve("evaluate: {primary_metric: character_accuracy}").evaluate.primary_metric == "character_accuracy"


def test_overrides_come_after_params(resolve: Resolve) -> None:
    config = resolve("quantization: {preset: mixed}", overrides=("quantization.preset=accuracy", "metric=reference_error"))
    assert config.quantization.preset == "accuracy"
    assert list(config.metric) == ["reference_error"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantization.presett=mixed", ("quantization.presett", "'mixed'", "did you mean 'preset'")),
        ("metric=texts", ("metric", "'texts'", "accuracy, mean_average_precision")),
        ("quantization.preset==", ("quantization.preset==",)),
        ("sede=1", ("sede", "did you mean 'seed'")),
    ],
)
def test_wrong_override(resolve: Resolve, override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("", overrides=(override,))
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_every_option_of_every_group_is_valid(resolve: Resolve, project: Project) -> None:
    # What a user has to give, per option.
    for file in ("data/images/cat/1.png", "data/text_direction/0/1.png", "data/pages/1.png", "data/topics.npz", "models/topics.xml"):
        project.write(file, "")
    project.write("data/pages/annotations.json", "{}")
    given = {
        "model: local": "model: {path: params.yaml}",
        "data: arrays": "data: {calibration: {path: params.yaml}}",
        "data: image_folder": "data: {calibration: {path: data/images}, validation: {path: data/images}}",
        "data: coco": "data: {calibration: {path: data/pages, annotations: data/pages/annotations.json}}",
        "data: custom": "data: {calibration: {_target_: stages.runtime.text_lines.TextLines, count: 3}}",
        "tracking: server": "tracking: {tracking_uri: 'http://localhost:5000'}",
    }
    groups = {path.parent.name for path in (project.root / "conf").glob("*/*.yaml")}
    assert groups == {
        *("model", "data", "metric", "engine", "target_device", "quantization"),
        *("bias_correction", "layerwise_tuning", "evaluate", "accuracy_aware", "tune", "cluster", "tracking", "experiment"),
    }
    for path in sorted((project.root / "conf").glob("*/*.yaml")):
        choice = f"{path.parent.name}: {path.stem}"
        chosen = (yaml.safe_load(path.read_text()) or {}).get("defaults", []) if path.parent.name == "experiment" else []
        set_by_it = [path.parent.name, *(key.removeprefix("override /") for entry in chosen for key in entry)]
        others = [other for other in EXAMPLE if other.split(":")[0] not in set_by_it]
        resolve(given.get(choice, ""), *others, choice)


def test_an_experiment_is_not_half_hidden(resolve: Resolve, project: Project) -> None:
    project.write(
        "conf/experiment/mine.yaml", "# @package _global_\ndefaults: [override /metric: accuracy]\nquantization: {preset: mixed}\n"
    )
    with pytest.raises(
        ConfigError, match=r"^defaults: 'override /metric: text' in params.yaml hides what the experiment 'mine' chooses, 'accuracy'"
    ):
        resolve("", *EXAMPLE, "experiment: mine")
    with pytest.raises(ConfigError, match="hides what the experiment 'mine' chooses"):
        resolve("", *EXAMPLE, overrides=("experiment=mine",))
    config = resolve("", *EXAMPLE[:2], "experiment: mine")
    assert (list(config.metric), config.quantization.preset) == (["accuracy"], "mixed")
    # What is asked for on the command line is no accident.
    assert list(resolve("", *EXAMPLE, overrides=("experiment=mine", "metric=top_k")).metric) == ["top_1", "top_5"]


def test_image_folder_validation_follows_calibration(resolve: Resolve, project: Project) -> None:
    project.write("images/1.png", "")
    both = "data: {calibration: {path: images, size: [64, 48], color: BGR}, validation: {path: images}}"
    config = resolve(both, EXAMPLE[0], "data: image_folder")
    assert config.data.validation == config.data.calibration
    only = resolve("data: {calibration: {path: images}, validation: null}", EXAMPLE[0], "data: image_folder")
    assert only.data.validation is None


def test_defaults_in_conf_are_those_of_the_schema(resolve: Resolve) -> None:
    """conf/ shows defaults beside their explanation, the schema decides them: they must agree."""
    composed = resolve()
    for section in ("engine", "quantization", "bias_correction", "accuracy_aware", "tune", "tracking"):
        assert getattr(composed, section) == getattr(Config(), section), section
    assert dataclasses.replace(composed.evaluate, primary_metric=None) == Config().evaluate
    data = yaml.safe_load(Path("conf/data/arrays.yaml").read_text())
    shared = {"validation", "calibration_size", "validation_size", "shuffle", "allow_overlap"}
    assert {key: data[key] for key in shared} == {key: dataclasses.asdict(Config())["data"][key] for key in shared}


def test_written_configuration_is_complete_and_loads(resolve: Resolve) -> None:
    config = resolve("quantization: {preset: mixed}")
    main()
    assert load_config() == config
    assert json.loads(artifacts.CONFIG.read_text()) == dataclasses.asdict(config)


def test_missing_or_unfitting_configuration_is_one_line(resolve: Resolve) -> None:
    resolve()
    with pytest.raises(UserError, match=r"^build/config.json is missing; run `dvc repro`$"):
        load_config()
    main()
    artifacts.CONFIG.write_text(artifacts.CONFIG.read_text().replace('"preset": "performance"', '"preset": "fast"', 1))
    with pytest.raises(ConfigError, match=r"^quantization.preset: 'fast' is not allowed"):
        load_config()


def test_configuration_is_checked_before_anything_heavy_is_imported(project: Project) -> None:
    heavy = ("numpy", "openvino", "mlflow", "matplotlib", "PIL")
    code = f"import sys; from stages import config, stage; config.main(); print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=project.root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ classes by _target_


def test_user_code_is_part_of_the_configuration(resolve: Resolve, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project.root))
    keys = "data: {calibration: {_target_: conf.my_data.Mine, size: 3}}"
    project.write("conf/my_data.py", "raise SystemExit('must not be imported')\nclass Mine:\n    def __init__(self, size): ...\n")
    first = resolve(keys, EXAMPLE[0], "data: custom")
    assert list(first.user_code) == ["conf/my_data.py"]
    project.write("conf/my_data.py", "class Mine:\n    def __init__(self, size): self.size = size\n")
    assert resolve(keys, EXAMPLE[0], "data: custom").user_code != first.user_code
    assert resolve().user_code == {}


def test_create(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module = project.write("own_create.py", "class Mine:\n    def __init__(self, size, parts): self.size, self.parts = size, parts\n")
    monkeypatch.syspath_prepend(str(module.parent))
    made = create({"_target_": "own_create.Mine", "size": [1, 2], "parts": {"a": 1}}, "data.calibration")
    assert (made.size, type(made.size), type(made.parts)) == ([1, 2], list, dict)


def test_what_a_class_refuses_is_one_line_and_its_defects_are_not(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module = project.write(
        "own_refusal.py",
        "from stages.common.errors import UserError\n"
        "class Refuses:\n    def __init__(self): raise UserError('count is 0')\n"
        "class Broken:\n    def __init__(self): raise ZeroDivisionError('defect')\n",
    )
    monkeypatch.syspath_prepend(str(module.parent))
    with pytest.raises(UserError, match=r"^data.calibration: count is 0$"):
        create({"_target_": "own_refusal.Refuses"}, "data.calibration")
    with pytest.raises(ZeroDivisionError, match="defect"):
        create({"_target_": "own_refusal.Broken"}, "data.calibration")


# ------------------------------------------------------------------------------------------------ what a change re-runs


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
    "quantization: {range_estimator: {max: {aggregator: median}}}": {"quantize"},
    # Whole tensors have their 1e-4 quantiles; those of channels take a third more time and are stored on demand.
    "quantization: {range_estimator: {preset: quantile}}": {"collect_statistics", "quantize"},
    "quantization: {range_estimator: {max: {type: quantile, outlier_prob: 1e-3}}}": {"collect_statistics", "quantize"},
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
    "bias_correction: {use_fast_bias: false}": {"correct_bias"},
    # Only the accurate correction runs models (test_the_engine_concerns_the_accurate_bias_correction).
    "engine: {threads: 1}": {"collect_statistics", "evaluate"},
    "data: {calibration: {count: 30}}": {"prepare", "evaluate"},
    "target_device: {pass_through: []}": {"collect_statistics", "quantize"},
    "model: {input_shape: {x: [1, 3, 48, 640]}}": {"prepare"},
}


# Searches read nearly all of it; while they are disabled that takes them a fraction of a second.
SEARCHES = {"accuracy_aware", "tune"}
NOT_OF_SEARCHES = ("tracking", "cluster", "model", "collect_statistics")
RERUNS |= {
    "accuracy_aware: {maximal_drop: 0.02}": set(),
    # Range estimators by quantiles need statistics that nothing else does.
    "accuracy_aware: {enabled: true, tune_hyperparams: true}": {"collect_statistics"},
    "tune: {max_trials: 7}": set(),
    "tune: {enabled: true, space: {tuning_scope: [layer]}}": set(),
    # Quantiles that trials may ask for are stored beforehand.
    "tune: {enabled: true}": {"collect_statistics"},
    "cluster: {workers: 2}": set(),
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
    for keys, concerned in ((accurate, True), ("use_fast_bias: true", False), (f"{accurate}, enabled: false", False)):
        before, after = (resolve(f"bias_correction: {{{keys}}}\nengine: {{threads: {threads}}}") for threads in (1, 2))
        assert (tracked(stage, before) != tracked(stage, after)) == concerned, keys


def test_every_key_belongs_to_a_stage(resolve: Resolve) -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    config = resolve()
    used = {key.split(".")[0] for stage in stages.values() for key in tracked(stage, config)}
    # `track` always runs and reads all of it; where a search evaluates does not change what it finds; a hash stands for the tables.
    assert {field.name for field in dataclasses.fields(Config)} - used == {"tracking", "cluster", "target_device"}
    assert stages["track"]["always_changed"]
