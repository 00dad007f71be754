"""POT's configurations, modelled on its documented templates: everything is carried over or listed, and the result is valid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from PIL import Image

from stages.common.errors import UserError
from stages.configuration.reference import _rows
from stages.configuration.schema import Config
from stages.pot.reading import plain_json, read_pot
from stages.pot.translation import ABSENT, Translation, known_targets, nested, translate
from tests.project import Outcome, Project
from tests.quantization import small

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


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1} // end', {"a": 1}),
        ('/* a\n "b" */ {"a": /* one */ 1,}', {"a": 1}),
        ('{"a": "http://x/*y*/", "b": "\\" // no comment", "c": [1, 2,\n],}', {"a": "http://x/*y*/", "b": '" // no comment', "c": [1, 2]}),
        ('{"a": ",}"}', {"a": ",}"}),
    ],
)
def test_comments_and_trailing_commas(text: str, expected: Any) -> None:
    assert json.loads(plain_json(text)) == expected
    assert plain_json(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{\n "model": {},\n "x" 1}', "line 3, column 6: not valid JSON: Expecting ':' delimiter"),
        ("a.json", "{}", "no POT configuration"),
        ("a.json", "[1]", "no POT configuration"),
        ("a.yaml", "model: [", "line 1: not valid YAML"),
        ("missing.json", None, "No such file or directory"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_pot(tmp_path / name)


def test_yaml_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(configuration(default(preset="mixed"))))
    assert read_pot(path) == configuration(default(preset="mixed"))


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


# ------------------------------------------------------------------------------------------------ searches

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


def test_accuracy_aware() -> None:
    unlabelled = {"annotation_free": True, "annotation_conf_threshold": 0.6, "metrics": [{"name": "accuracy", "baseline_value": 0.72}]}
    params = {**AWARE, **unlabelled, "preset": "performance", "stat_subset_size": 300, "use_fast_bias": True}
    translation = translated({"name": "AccuracyAwareQuantization", "params": params})
    values = nested(translation.values)
    assert values["accuracy_aware"] == {"enabled": True, "on_failure": "keep", **AWARE}
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
    assert tune.pop("benchmark") == {"requests": 1, "streams": 2, "threads": 3, "batch": 1}
    assert tune == {"enabled": True, **TPE}
    assert left(translation).keys() == {"params.multinode", "params.metrics", "benchmark.api_type"}
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


def test_accuracy_checker_is_not_carried_over() -> None:
    engine = {"config": "ac.yaml", "datasets": [{"name": "imagenet"}], "launchers": [{"framework": "dlsdk"}], "stat_requests_number": 4}
    translation = translated(default(), engine=engine)
    assert left(translation).keys() == {"engine.config", "engine.datasets", "engine.launchers"}
    assert translation.options["data"] == "custom"
    assert translation.values["engine.requests"] == 4
    assert [text.split(":")[0] for text in translation.missing] == ["data", "metric"]


# ------------------------------------------------------------------------------------------------ the command, for real


@pytest.fixture
def own(project: Project) -> Project:
    """A project with a small network and images."""
    generator = np.random.default_rng(0)
    x = small.parameter([1, 3, 12, 16])
    hidden = small.convolution(x, generator.normal(size=(4, 3, 3, 3)).astype(np.float32), "conv_1", bias=np.ones(4, np.float32))
    output = small.convolution(hidden, generator.normal(size=(2, 4, 3, 3)).astype(np.float32), "conv_2", bias=np.ones(2, np.float32))
    (project.root / "models").mkdir()
    ov.save_model(small.model(output, x), project.root / "models/net.xml", compress_to_fp16=False)
    (project.root / "images").mkdir()
    for index in range(8):
        picture = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture.save(project.root / f"images/{index}.png")
    project.write("pot.json", SIMPLIFIED)
    return project


def translate_in(project: Project, *arguments: str) -> Outcome:
    return project.run(sys.executable, "-m", "stages.translate_pot", *arguments)


def test_looking_changes_nothing(own: Project) -> None:
    before = (own.root / "params.yaml").read_bytes()
    command = [sys.executable, "-m", "stages.translate_pot", "pot.json"]
    done = subprocess.run(command, cwd=own.root, env=own.environment(), capture_output=True, text=True, check=True)
    assert (own.root / "params.yaml").read_bytes() == before
    values = yaml.safe_load(done.stdout)
    assert values["model"] == {"name": "smallnet", "path": "models/net.xml"}
    assert values["data"]["calibration"]["size"] == [12, 16]  # of the model's input
    assert done.stderr.splitlines()[0] == "read as something else:"
    assert "nothing was left behind" in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        configuration(default(**{**FULL, "stat_subset_size": 4})),
        configuration({"name": "AccuracyAwareQuantization", "params": {**AWARE, "stat_subset_size": 4}}),
        configuration(
            {
                "name": "TunableQuantization",
                "params": {"tuning_scope": ["layer", "mode", "range_estimator"], "outlier_prob_choices": [1e-3]},
            },
            optimizer={"name": "Tpe", "params": TPE},
        ),
        configuration({"name": "MinMaxQuantization", "params": {"preset": "mixed"}}, {"name": "FastBiasCorrection", "params": {}}),
    ],
    ids=["default", "accuracy_aware", "tpe", "steps"],
)
def test_the_result_is_a_valid_configuration(own: Project, content: dict[str, Any]) -> None:
    own.write("pot.json", json.dumps(content))
    assert translate_in(own, "pot.json", "--write").code == 0
    outcome = own.run(sys.executable, "-m", "stages.config")
    assert outcome.code == 0, outcome.output
    built = json.loads((own.root / "build/config.json").read_text())
    for key, value in translate(content, own.root).values.items():
        place = built
        for name in key.split("."):
            place = place[name]
        if not isinstance(value, dict | list):
            assert place == value, key


def test_accuracy_checker_stops_at_what_must_be_written(own: Project) -> None:
    own.write("pot.json", json.dumps(configuration(default(), engine={"config": "ac.yaml"})))
    assert "data: your samples" in translate_in(own, "pot.json", "--write").output
    outcome = own.run(sys.executable, "-m", "stages.config")
    assert outcome.errors == ["config: error: data.calibration._target_: ??? is not allowed; a value must be given"]


def test_a_file_that_cannot_be_read_is_one_line(own: Project) -> None:
    outcome = translate_in(own, "missing.json", "--write")
    assert outcome.code == 1
    assert outcome.output == "translate_pot: error: missing.json: No such file or directory\n"


@pytest.mark.slow
def test_a_translated_pipeline_runs(own: Project) -> None:
    assert translate_in(own, "pot.json", "--write").code == 0
    outcome = own.repro()
    assert outcome.code == 0, outcome.output
    assert "smallnet on image_folder: preset mixed for CPU, 4 calibration and 4 validation samples" in outcome.output
