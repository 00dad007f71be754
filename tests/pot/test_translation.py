"""POT's configurations, modelled on its documented templates: everything is carried over or listed, and the result is valid."""

from __future__ import annotations

from typing import Any

import pytest

from stages.common.errors import UserError
from stages.configuration.reference import _rows
from stages.configuration.schema import Config
from stages.pot.result import ABSENT
from stages.pot.translation import known_targets, nested
from tests.pot.configurations import AWARE, FULL, TPE, default, left, translated

# ------------------------------------------------------------------------------------------------ algorithms


def test_every_parameter_of_default_quantization() -> None:
    translation = translated(default(**FULL))
    values = nested(translation.values)
    assert values["bias_correction"] == {"use_fast_bias": False, "threshold": 500, "apply_for_all_nodes": True}
    quantization = values["quantization"]
    assert quantization.pop("ignored") == {
        "scope": ["/head/Conv"],
        "operations": [{"type": "Add", "attributes": {"auto_broadcast": "numpy"}}, {"type": "Multiply"}],
    }
    assert quantization.pop("weights") == {
        **{key: FULL["weights"][key] for key in ("bits", "mode", "granularity", "level_low", "level_high")},
        "range_estimator": {"max": {"type": "quantile", "outlier_prob": 0.0001}},
    }
    assert quantization.pop("activations") == {
        "mode": "asymmetric",
        "range_estimator": {
            "min": {"type": "quantile", "outlier_prob": 0.001, "aggregator": "mean", "clipping_value": 0},
            "max": {"type": "max", "aggregator": "hl_estimator"},
        },
    }
    assert quantization == {
        "preset": "mixed",
        "stat_subset_size": 300,
        "stat_batch_size": 8,
        "saturation_fix": "all",
        "range_estimator": {"preset": "quantile"},
        "allow_unsupported": True,
    }
    assert values["data"]["calibration_size"] == 300
    assert left(translation) == {
        "ignored.scope[1]": "operations inside If and Loop are not quantized anyway",
        "min.type": "symmetric weights have only a max",
        "max.aggregator": "there are no samples of weights to aggregate",
        "activations.level_low": "level_low and level_high are given together",
        "max.outlier_prob": "only quantiles have it",
        "max.granularity": "a range is estimated with the granularity that it has",
    }


def test_single_steps_do_nothing_but_those() -> None:
    sampling = {"stat_subset_size": 200}
    minmax = {"name": "MinMaxQuantization", "params": {"preset": "performance", **sampling}}
    bias = {"name": "BiasCorrection", "params": {"threshold": 100, **sampling}}
    values = translated(minmax, bias).values
    assert values["quantization.use_channel_alignment"] is False
    assert values["bias_correction.enabled"] is True and values["bias_correction.use_fast_bias"] is False
    assert values["bias_correction.threshold"] == 100
    values = translated({"name": "ActivationChannelAlignment", "params": sampling}, minmax).values
    assert values["quantization.use_channel_alignment"] is True and values["bias_correction.enabled"] is False
    assert "bias_correction.enabled" not in translated(default()).values


def test_algorithms_that_disagree() -> None:
    fast = {"name": "FastBiasCorrection", "params": {"stat_subset_size": 100}}
    translation = translated({"name": "MinMaxQuantization", "params": {"stat_subset_size": 200}}, fast)
    assert translation.values["quantization.stat_subset_size"] == 200
    assert left(translation) == {"params.stat_subset_size": "another algorithm set quantization.stat_subset_size to 200, which serves all"}


@pytest.mark.parametrize(
    ("device", "option", "preset", "expected"),
    [
        ("CPU", "cpu", "accuracy", "mixed"),
        ("ANY", "any", "asymmetric", "mixed"),
        ("GPU", "gpu", "symmetric", "performance"),
        ("NPU", "npu", "accuracy", "accuracy"),
        ("VPU", "npu", "performance", "performance"),
        ("GNA3", "gna", "mixed", "accuracy"),
        ("CPU_SPR", "cpu_spr", "mixed", "mixed"),
    ],
)
def test_devices_and_presets_as_the_command_line_read_them(device: str, option: str, preset: str, expected: str) -> None:
    compression = {"target_device": device, "algorithms": [default(preset=preset)]}
    translation = translated(compression=compression)
    assert translation.options["target_device"] == option
    assert translation.values["quantization.preset"] == expected
    changed = {remark.key.rpartition(".")[2] for remark in translation.changed}
    assert ("preset" in changed) == (preset != expected)
    assert ("target_device" in changed) == (device.lower() != option)


def test_transformers_and_unknown_devices() -> None:
    translation = translated(compression={"target_device": "TPU", "model_type": "Transformer", "algorithms": [default()]})
    assert translation.values["quantization.model_type"] == "transformer"
    assert translation.options["target_device"] == "any"
    assert "the devices are any, cpu" in left(translation)["compression.target_device"]


def test_what_is_not_known_is_listed_with_its_reason() -> None:
    compression = {
        "algorithms": [
            default(made_up=1, preset="fast", stat_subset_size=0, inplace_statistic=True),
            {"name": "WeightSparsity", "params": {}},
        ],
        "dump_intermediate_model": True,
        "else": {},
    }
    translation = translated(compression=compression, extra=1)
    reasons = left(translation)
    assert (
        reasons["extra"] == reasons["compression.else"] == reasons["params.made_up"] == "POT has no such key, as far as this project knows"
    )
    assert reasons["params.preset"].startswith("quantization.preset: 'fast' is not allowed; expected one of performance, mixed, accuracy")
    assert reasons["params.stat_subset_size"].startswith("quantization.stat_subset_size: 0 is not allowed")
    assert reasons["algorithms[1].name"].startswith("the algorithms are MinMaxQuantization, DefaultQuantization")
    assert [remark.key.rpartition(".")[2] for remark in translation.needless] == ["dump_intermediate_model", "inplace_statistic"]


@pytest.mark.parametrize("algorithms", ["DefaultQuantization", {"name": "x"}, None, ["DefaultQuantization"], [{"params": 3}]])
def test_structures_that_are_wrong_are_listed(algorithms: Any) -> None:
    assert translated(compression={"algorithms": algorithms}).left


def test_sections_that_are_wrong_are_listed() -> None:
    translation = translated(default(weights=8, range_estimator="quantile", ignored=[]), engine="simplified")
    assert {"params.weights", "params.range_estimator", "params.ignored", "engine"} == left(translation).keys()


def test_accuracy_aware() -> None:
    unlabelled = {"annotation_free": True, "annotation_conf_threshold": 0.6, "metrics": [{"name": "accuracy", "baseline_value": 0.72}]}
    params = {**AWARE, **unlabelled, "preset": "performance", "stat_subset_size": 300, "use_fast_bias": True}
    translation = translated({"name": "AccuracyAwareQuantization", "params": params})
    values = nested(translation.values)
    assert values["accuracy_aware"] == {"enabled": True, "on_failure": "keep", "acceptance": "point", **AWARE}
    assert values["quantization"]["preset"] == "performance" and values["bias_correction"] == {"use_fast_bias": True}
    assert left(translation).keys() == {"params.annotation_free", "params.annotation_conf_threshold", "params.metrics"}


def test_tunable_with_tpe() -> None:
    scope = {"tuning_scope": ["layer", "mode"], "estimator_tuning_scope": ["preset"], "outlier_prob_choices": [1e-3, 1e-4]}
    tunable = {"name": "TunableQuantization", "params": {"preset": "performance", "stat_subset_size": 300, **scope}}
    benchmark = {"nireq": 1, "nstreams": 2, "nthreads": 3, "batch_size": 1, "niter": 100, "api_type": "async"}
    metrics = {"metrics": [{"name": "accuracy"}]}
    steps = [{"name": "ActivationChannelAlignment", "params": {}}, tunable, {"name": "FastBiasCorrection", "params": {}}]
    translation = translated(
        *steps, optimizer={"name": "Tpe", "params": {**TPE, **metrics, "multinode": {"type": "server"}, "benchmark": benchmark}}
    )
    tune = nested(translation.values)["tune"]
    assert tune.pop("space") == scope
    assert tune.pop("benchmark") == {"hint": "throughput", "requests": 1, "streams": 2, "threads": 3, "batch": 1}
    assert tune == {"enabled": True, "acceptance": "point", **TPE}
    assert left(translation).keys() == {"params.multinode", "params.metrics"}
    assert translation.values["quantization.use_channel_alignment"] is True


def test_tunable_without_an_optimizer_is_minmax() -> None:
    translation = translated({"name": "TunableQuantization", "params": {"preset": "performance"}})
    assert "tune.enabled" not in translation.values
    assert translation.changed[0].text.startswith("MinMaxQuantization: nothing is tuned")
    assert left(translated(default(), optimizer={"name": "Genetic", "params": {}})) == {"optimizer.name": "the optimizer is Tpe"}


def test_every_key_that_the_tables_name_exists() -> None:
    known = {row[0] for row in _rows(Config, "")}
    assert known_targets() - known == set()
    assert ABSENT not in left(translated(default(**FULL))).values()


# ------------------------------------------------------------------------------------------------ engines


@pytest.mark.parametrize(
    ("benchmark", "expected"),
    [
        ({"nireq": 1}, {"hint": "throughput", "requests": 1}),  # POT's own examples: api_type is async
        ({"nireq": 4, "api_type": "async"}, {"hint": "throughput", "requests": 4}),
        ({"nireq": 1, "api_type": "sync"}, {"hint": "latency"}),
        ({"nireq": 4, "api_type": "sync"}, {"hint": "latency"}),
        ({}, {"hint": "throughput", "requests": 0}),
    ],
)
def test_requests_of_the_benchmark(benchmark: dict[str, Any], expected: dict[str, Any]) -> None:
    translation = translated(default(), optimizer={"name": "Tpe", "params": {"benchmark": benchmark}})
    assert nested(translation.values)["tune"]["benchmark"] == expected


@pytest.mark.parametrize(
    ("source", "path", "extensions"),
    [("images", "images", None), ("images/*.jpg", "images", [".jpg"]), ("images/a_*.jpg", "images", None), ("*.png", ".", [".png"])],
)
def test_patterns_of_files(source: str, path: str, extensions: list[str] | None) -> None:
    translation = translated(default(), engine={"type": "simplified", "data_source": source, "layout": "NCHW"})
    assert translation.values["data.calibration.path"] == path
    assert translation.values.get("data.calibration.extensions") == extensions
    assert ("engine.data_source" in left(translation)) == ("a_" in source)


def test_keys_of_accuracy_checker_are_pots() -> None:
    engine = {"type": "simplified", "data_source": "images", "config": "a", "launchers": [], "datasets": []}
    for text in left(translated(default(), engine=engine)).values():
        assert text == "is of Accuracy Checker, which the engine `simplified` does not use"


CHECKER: dict[str, Any] = {
    "name": "imagenet",
    "data_source": "images",
    "annotation_conversion": {"converter": "imagenet"},
    "preprocessing": [
        {"type": "bgr_to_rgb"},
        {"type": "resize", "size": 256, "aspect_ratio_scale": "greater"},
        {"type": "crop", "size": 224},
        {"type": "normalization", "mean": "imagenet", "std": [58.0, 57.0, 57.5]},
        {"type": "auto_resize"},
    ],
    "metrics": [{"type": "accuracy", "top_k": 5}, {"type": "map"}],
}


def test_a_data_set_of_accuracy_checker() -> None:
    translation = translated(default(), engine={"launchers": [{"framework": "dlsdk"}], "datasets": [CHECKER]})
    assert translation.options["data"] == "image_folder" and translation.options["metric"] == "accuracy"
    values = nested(translation.values)
    assert values["metric"] == {"accuracy": {"top_k": 5}}
    assert values["data"]["calibration"] == {
        "path": "images",
        "color": "RGB",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.0, 57.0, 57.5],
        "size": [224, 224],
        "resize": "crop",
        "resize_to": 256,
    }
    assert {key.rpartition(".")[2] for key in left(translation)} == {"launchers", "annotation_conversion", "preprocessing[4]", "metrics[1]"}
    stretched = translated(default(), engine={"datasets": [{"data_source": "i", "preprocessing": [{"type": "resize", "size": 32}]}]})
    assert stretched.values["data.calibration.size"] == [32, 32] and stretched.values["data.calibration.resize"] == "stretch"
    assert stretched.options["metric"] == "reference_error"


def test_an_unknown_algorithm_alone_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^compression\.algorithms: 'WeightSparsity' cannot be carried over; the algorithms are Acc"):
        translated({"name": "WeightSparsity", "params": {}})


def test_accuracy_checker_is_not_carried_over() -> None:
    engine = {"config": "ac.yaml", "datasets": [{"name": "imagenet"}], "launchers": [{"framework": "dlsdk"}], "stat_requests_number": 4}
    translation = translated(default(), engine=engine)
    assert left(translation).keys() == {"engine.config", "engine.datasets", "engine.launchers"}
    assert translation.options["data"] == "custom"
    assert translation.values["engine.requests"] == 4
    assert [text.split(":")[0] for text in translation.missing] == ["data", "metric"]
