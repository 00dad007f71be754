"""Translate a POT configuration, key by key: what each becomes here, or why it cannot be carried over.

Tables say what a key becomes: a dotted key of the schema, or a sentence (it has a space) that says why nothing. Whatever no
table names is listed, too: nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stages.common.errors import ConfigError
from stages.configuration.schema import Config
from stages.configuration.validation import LOWER_TYPES, QUANTILE_TYPES, UPPER_TYPES, typed

NEEDLESS = "needless: "  # begins the reason of a key that nobody will miss
UNKNOWN = "POT has no such key, as far as this project knows"
ABSENT = "this project has no such parameter"

MODEL = {
    "model_name": "model.name",
    "model": "model.path",
    "weights": "the weights are read from the .bin file beside the .xml",
    "cascade": "one model at a time: make a project of each model of a cascade",
}
ENGINE = {
    "device": "engine.device",
    "eval_requests_number": "engine.requests",
    "stat_requests_number": NEEDLESS + "engine.requests serves statistics and evaluation alike, and is eval_requests_number here",
}
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
TPE = {
    **{
        name: f"tune.{name}"
        for name in (
            "max_trials",
            "max_minutes",
            "stop_on_target",
            "trials_load_method",
            "accuracy_loss",
            "latency_reduce",
            "accuracy_weight",
            "latency_weight",
            "quantization_ratio_weight",
            "expected_quantization_ratio",
            "eval_subset_size",
        )
    },
    "multinode": "machines are joined by Dask, not by MongoDB: see `cluster` in params.yaml",
    "model_log_dir": NEEDLESS + "trials are kept in build/ and in MLflow",
    "anneal": "TPE only",
    "debug": NEEDLESS + "every trial is kept with its parameters, always",
    "keep_uncompressed_weights": NEEDLESS + "weights are always compressed, and measured so",
}
BENCHMARK = {
    "nireq": "tune.benchmark.requests",
    "nstreams": "tune.benchmark.streams",
    "nthreads": "tune.benchmark.threads",
    "batch_size": "tune.benchmark.batch",
    "duration_seconds": "measures a model alone; here every trial takes turns with FP32, see tune.benchmark.duration_seconds",
    "niter": NEEDLESS + "POT accepted it and never read it",
    "performance_count": NEEDLESS + "POT accepted it and never read it",
    "api_type": "see tune.benchmark.hint: latency or throughput",
    "cpu_bind_thread": NEEDLESS + "OpenVINO decides",
    "bench_test_number": "see tune.benchmark.duration_seconds",
    "benchmark_cpp": NEEDLESS + "models are measured by this project itself",
    "benchmark_app_dir": NEEDLESS + "models are measured by this project itself",
}

DEVICES = {"VPU": "npu", "GNA3": "gna", "GNA3.5": "gna"}  # others by their own names
DEVICE_OPTIONS = ("any", "cpu", "cpu_spr", "gpu", "npu", "gna")
PRESET_ALIASES = {"symmetric": "performance", "asymmetric": "accuracy"}
SCHEME_KEYS = ("bits", "mode", "granularity", "level_low", "level_high")
ESTIMATOR_KEYS = ("type", "outlier_prob", "clipping_value", "aggregator")
NEEDED = {"model": {"name": "model"}, "data": {"name": "data"}}  # what the schema asks for, whatever is checked


@dataclass(frozen=True)
class Remark:
    """A key of the POT configuration, and what is to be said of it."""

    key: str
    value: Any
    text: str


@dataclass
class Translation:
    """The result so far.

    Attributes:
        options: The option of each group, for the defaults list of params.yaml.
        values: Value by dotted key of this project's configuration.
        changed: What became something else than its name says.
        left: What cannot be carried over.
        needless: What has no counterpart because nothing here needs it.
        missing: What has to be written by hand before the pipeline runs.
    """

    options: dict[str, str] = field(default_factory=lambda: {"model": "local"})
    values: dict[str, Any] = field(default_factory=dict)
    changed: list[Remark] = field(default_factory=list)
    left: list[Remark] = field(default_factory=list)
    needless: list[Remark] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, target: str) -> None:
        """Carry a value over, unless the schema has no such key, refuses the value, or another algorithm said otherwise."""
        if target in self.values and self.values[target] != value:
            self.leave(key, value, f"another algorithm set {target} to {self.values[target]!r}, which serves all")
        elif problem := _refusal(target, value):
            self.leave(key, value, problem)
        else:
            self.values[target] = value

    def leave(self, key: str, value: Any, reason: str) -> None:
        """Say why a value is not carried over."""
        remarks = self.needless if reason.startswith(NEEDLESS) else self.left
        remarks.append(Remark(key, value, reason.removeprefix(NEEDLESS)))

    def change(self, key: str, value: Any, text: str) -> None:
        """Say what a value became."""
        self.changed.append(Remark(key, value, text))

    def by_table(self, section: Mapping[str, Any], table: Mapping[str, str], place: str, handled: tuple[str, ...] = ()) -> None:
        """Carry over every key of a section that the table knows, and list the others, but those that are handled elsewhere."""
        for name, value in section.items():
            if name in handled:
                continue
            target = table.get(name, UNKNOWN)
            if " " in target:
                self.leave(f"{place}.{name}", value, target)
            else:
                self.put(f"{place}.{name}", value, target)


def translate(pot: Mapping[str, Any], root: Path) -> Translation:
    """The parameters that a POT configuration stands for.

    Args:
        pot: Content of the file.
        root: Folder that relative paths start from.
    """
    result = Translation()
    sections = {name: _section(result, pot.get(name), name) for name in ("model", "engine", "compression", "optimizer")}
    for name, value in pot.items():
        if name not in sections:
            result.leave(name, value, UNKNOWN)
    _model(result, sections["model"])
    _compression(result, sections["compression"], sections["optimizer"])
    _optimizer(result, sections["optimizer"])
    _engine(result, sections["engine"], root)
    return result


def _section(result: Translation, value: Any, key: str) -> dict[str, Any]:
    """A section, or an empty one with a remark where something else stands."""
    if value is None or isinstance(value, dict):
        return dict(value or {})
    result.leave(key, value, "a section is expected here")
    return {}


def _refusal(target: str, value: Any) -> str | None:
    """Why the schema does not take the value at a dotted key; None when it does."""
    section: Any = Config()
    for name in target.split("."):
        if not hasattr(section, name):
            return ABSENT
        section = getattr(section, name)
    tree = {name: dict(values) for name, values in NEEDED.items()}
    place: dict[str, Any] = tree
    *parents, last = target.split(".")
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    try:
        typed(Config, tree)
    except ConfigError as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------ model, engine


def _model(result: Translation, model: Mapping[str, Any]) -> None:
    beside = str(model.get("model", "")).removesuffix(".xml") + ".bin"
    result.by_table(model, MODEL, "model", handled=("weights",) if model.get("weights") == beside else ())
    if "model.path" not in result.values:
        result.missing.append("model.path: the model's file")


def _engine(result: Translation, engine: Mapping[str, Any], root: Path) -> None:
    kind = engine.get("type", "accuracy_checker")
    if "eval_requests_number" not in engine and "stat_requests_number" in engine:
        engine = {**engine, "eval_requests_number": engine["stat_requests_number"]}
        engine.pop("stat_requests_number")
    if kind == "simplified":
        result.by_table(engine, ENGINE, "engine", handled=("type", "data_source", "layout", "central_fraction"))
        _images(result, engine, root)
        return
    result.options |= {"data": "custom", "metric": "reference_error"}
    if kind != "accuracy_checker":
        result.leave("engine.type", kind, "the engines are accuracy_checker and simplified")
    known = {name: value for name, value in engine.items() if name in ENGINE}
    result.by_table(known, ENGINE, "engine")
    for name, value in engine.items():
        if name not in (*ENGINE, "type"):
            result.leave(f"engine.{name}", value, "Accuracy Checker's data sets, launchers and metrics: write `data` and `metric` instead")
    result.missing.append("data: your samples (README, Bring your own)")
    result.missing.append(
        "metric: your metric; until then reference_error, the distance to the FP32 model's outputs, which needs no labels"
    )


def _images(result: Translation, engine: Mapping[str, Any], root: Path) -> None:
    """The simplified engine: a folder of images without labels, as OpenCV reads them (BGR), scaled to the model's input."""
    result.options |= {"data": "image_folder", "metric": "reference_error"}
    layout = str(engine.get("layout", "NCHW")).upper()
    settings: dict[str, Any] = {"path": engine.get("data_source"), "color": "BGR", "mean": 0.0, "std": 1.0, "layout": layout}
    settings |= {"resize": "stretch", "resize_to": None, "size": None}
    path = result.values.get("model.path")
    shape = _input_shape(root / path) if isinstance(path, str) else None
    if layout not in ("NCHW", "NHWC"):
        result.leave("engine.layout", engine["layout"], "one of NCHW and NHWC is expected here")
        settings["layout"] = "NCHW"
    if settings["path"] is None:
        settings.pop("path")
        result.missing.append("data.calibration.path: the folder of images")
    if shape and len(shape) == 4:
        settings["size"] = shape[2:] if settings["layout"] == "NCHW" else shape[1:3]
    else:
        settings.pop("size")
        result.missing.append("data.calibration.size: [height, width] of the model's input, which could not be read from the model")
    fraction = engine.get("central_fraction")
    if fraction is not None:
        result.leave("engine.central_fraction", fraction, "see data.calibration.resize: crop and resize_to, which cut out the centre")
    for name, value in settings.items():
        result.values[f"data.calibration.{name}"] = value
    result.values["data.validation"] = None
    subset = result.values.get("quantization.stat_subset_size")
    if subset is not None:
        result.values["data.calibration_size"] = subset
    result.values["data.allow_overlap"] = True
    text = (
        "data image_folder, without labels: the metric is reference_error, the distance to the FP32 model's outputs, and where the folder"
        " has no more images than calibration takes, it also validates (data.allow_overlap)"
    )
    result.change("engine.type", "simplified", text)


def _input_shape(path: Path) -> list[int] | None:
    """The fixed shape of the only input of an IR; None where it has none that is known."""
    try:
        layers = ElementTree.parse(path).getroot().iterfind("layers/layer[@type='Parameter']/data")
    except (OSError, ElementTree.ParseError):
        return None
    shapes = [data.get("shape", "") for data in layers]
    if len(shapes) != 1 or not re.fullmatch(r"\d+(,\s*\d+)*", shapes[0]):
        return None
    return [int(size) for size in shapes[0].split(",")]


# ------------------------------------------------------------------------------------------------ algorithms


def _compression(result: Translation, compression: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
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
        entry = _section(result, entry, key)
        named[str(entry.get("name"))] = f"{key}.params", _section(result, entry.get("params"), f"{key}.params")
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
        _metrics(result, params, place)
    if name == "TunableQuantization" and not searched:
        result.change(place.removesuffix(".params") + ".name", name, "MinMaxQuantization: nothing is tuned without the optimizer Tpe")
    result.by_table(params, tables[name], place, steps)
    _preset(result, params, place, device)
    _schemes(result, params, place)
    _ignored(result, params.get("ignored"), f"{place}.ignored")


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


def _optimizer(result: Translation, optimizer: Mapping[str, Any]) -> None:
    if not optimizer:
        return
    name, params = optimizer.get("name"), _section(result, optimizer.get("params"), "optimizer.params")
    if name != "Tpe":
        result.leave("optimizer.name", name, "the optimizer is Tpe")
        return
    result.put("optimizer.name", True, "tune.enabled")
    result.by_table(params, TPE, "optimizer.params", handled=("benchmark", "metrics"))
    if "metrics" in params:
        result.leave(
            "optimizer.params.metrics", params["metrics"], "name the metrics of `metric` in tune.metrics, or leave the primary one"
        )
    result.by_table(_section(result, params.get("benchmark"), "optimizer.params.benchmark"), BENCHMARK, "optimizer.params.benchmark")


# ------------------------------------------------------------------------------------------------ schemes, estimators, scope


def _schemes(result: Translation, params: Mapping[str, Any], place: str) -> None:
    forced = False
    for group in ("weights", "activations"):
        key, target = f"{place}.{group}", f"quantization.{group}"
        scheme = _section(result, params.get(group), key)
        levels = [scheme.get(name) is not None for name in ("level_low", "level_high")]
        for name, value in scheme.items():
            if name == "range_estimator":
                continue
            if name not in SCHEME_KEYS:
                result.leave(f"{key}.{name}", value, UNKNOWN)
            elif name.startswith("level_") and not all(levels):
                result.leave(f"{key}.{name}", value, "level_low and level_high are given together")
            else:
                result.put(f"{key}.{name}", value, f"{target}.{name}")
                forced = True
        if scheme.get("range_estimator") is not None:
            mode = scheme.get("mode")
            estimator = _estimator(result, scheme["range_estimator"], f"{key}.range_estimator", weights=group == "weights", mode=mode)
            result.put(f"{key}.range_estimator", estimator, f"{target}.range_estimator")
    if params.get("range_estimator") is not None:
        estimator = _estimator(result, params["range_estimator"], f"{place}.range_estimator", weights=False, mode=None)
        result.put(f"{place}.range_estimator", estimator, "quantization.range_estimator")
    if forced:
        # POT used such settings also where the device's table has none like them.
        result.values["quantization.allow_unsupported"] = True


def _estimator(result: Translation, given: Any, key: str, *, weights: bool, mode: Any) -> dict[str, Any]:
    """A range estimator without what does nothing or is not known here."""
    section = _section(result, given, key)
    preset = section.get("preset", "default")
    estimator: dict[str, Any] = {"preset": preset} if "preset" in section else {}
    for name, value in section.items():
        if name not in ("preset", "min", "max"):
            result.leave(f"{key}.{name}", value, UNKNOWN)
    for border, types in (("min", LOWER_TYPES), ("max", UPPER_TYPES)):
        entry = _section(result, section.get(border), f"{key}.{border}")
        kept: dict[str, Any] = {}
        for name, value in entry.items():
            if problem := _estimator_problem(name, value, entry, border, types, preset, weights=weights, mode=mode):
                result.leave(f"{key}.{border}.{name}", value, problem)
            else:
                kept[name] = value
        if kept:
            estimator[border] = kept
    return estimator


def _estimator_problem(
    name: str, value: Any, entry: Mapping[str, Any], border: str, types: tuple[str, ...], preset: Any, *, weights: bool, mode: Any
) -> str | None:
    """Why a key of one border of an estimator is not carried over."""
    quantile = entry.get("type") in QUANTILE_TYPES or (entry.get("type") is None and preset == "quantile")
    if name == "granularity":
        return "a range is estimated with the granularity that it has"
    if name not in ESTIMATOR_KEYS:
        return UNKNOWN
    if weights and border == "min" and mode == "symmetric":
        return "symmetric weights have only a max"
    if weights and name == "aggregator":
        return "there are no samples of weights to aggregate"
    if name == "type" and value not in types:
        return f"the types of {border} are {', '.join(types)}"
    if name == "type" and value in QUANTILE_TYPES and entry.get("outlier_prob") is None and preset != "quantile":
        return "a quantile needs outlier_prob"
    if name == "outlier_prob" and not quantile:
        return "only quantiles have it"
    return _refusal(f"quantization.range_estimator.{border}.{name}", value)


def _ignored(result: Translation, given: Any, key: str) -> None:
    ignored = _section(result, given, key)
    scope = []
    for index, name in enumerate(ignored.get("scope") or []):
        if isinstance(name, str):
            scope.append(name)
        else:
            result.leave(f"{key}.scope[{index}]", name, "operations inside If and Loop are not quantized anyway")
    operations = ignored.get("operations") or []
    if scope:
        result.put(f"{key}.scope", scope, "quantization.ignored.scope")
    if operations:
        result.put(f"{key}.operations", operations, "quantization.ignored.operations")
    if ignored.get("skip_model"):
        result.leave(f"{key}.skip_model", True, "a model that is not quantized needs no pipeline")
    for name, value in ignored.items():
        if name not in ("scope", "operations", "skip_model"):
            result.leave(f"{key}.{name}", value, "cascades: one model at a time" if isinstance(value, dict) else UNKNOWN)


def known_targets() -> set[str]:
    """Every key of this project that a table names."""
    tables = (MODEL, ENGINE, COMPRESSION, SAMPLING, BIASES, QUANTIZERS, LAYERWISE, ACCURACY_AWARE, TUNABLE, TPE, BENCHMARK)
    return {target for table in tables for target in table.values() if " " not in target}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections, in the order of the schema."""
    order = [entry.name for entry in dataclasses.fields(Config)]
    tree: dict[str, Any] = {}
    for key in sorted(values, key=lambda key: order.index(key.split(".")[0])):
        place = tree
        *parents, last = key.split(".")
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = values[key]
    return tree
