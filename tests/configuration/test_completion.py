"""What follows from the configuration is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.configuration.resolving import EXAMPLE, Resolve
from tests.configuration.test_reruns import tracked
from tests.project import Project


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


def test_user_code_is_part_of_the_configuration(resolve: Resolve, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project.root))
    keys = "data: {calibration: {_target_: conf.my_data.Mine, size: 3}}"
    project.write("conf/my_data.py", "raise SystemExit('must not be imported')\nclass Mine:\n    def __init__(self, size): ...\n")
    first = resolve(keys, EXAMPLE[0], "data: custom")
    assert list(first.user_code) == ["conf/my_data.py"]
    project.write("conf/my_data.py", "class Mine:\n    def __init__(self, size): self.size = size\n")
    assert resolve(keys, EXAMPLE[0], "data: custom").user_code != first.user_code
    assert resolve().user_code == {}
