"""Checks of the configuration against `stages.configuration.schema`: types, allowed values, unknown keys, contradictions, missing files.

Every problem is a `ConfigError` of one line that names the key, the value and what is allowed. Nothing heavy is imported.
`typed` checks each value by itself, `checked` also what values mean together and what they point at.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path

from stages.common.errors import ConfigError
from stages.common.messages import nearest, show
from stages.common.passwords import has_password
from stages.common.paths import is_there, of_a_copy
from stages.configuration import user_classes
from stages.configuration.conversion import refused, typed
from stages.configuration.schema import (
    COMPUTED,
    ESTIMATOR_TUNING_SCOPE,
    MISSING,
    PRESETS,
    TUNING_SCOPE,
    Cluster,
    Config,
    Data,
    Estimator,
    Ignored,
    LayerwiseTuning,
    Model,
    RangeEstimator,
    Scheme,
    Tracking,
)
from stages.configuration.secrets import refuse_secrets

QUANTILE_TYPES = ("quantile", "abs_quantile")
POOLED_TYPES = ("histogram", "percentile", "entropy", "sqnr")  # of all samples together
POOLED_PRESETS = ("mse", "sqnr")
SHARE_TYPES = (*QUANTILE_TYPES, "percentile")
LOWER_TYPES = ("min", "quantile", *POOLED_TYPES)
UPPER_TYPES = ("max", "abs_max", "quantile", "abs_quantile", *POOLED_TYPES)


def checked(values: object) -> Config:
    """The configuration as dataclasses, or the first problem found in it.

    Raises:
        ConfigError: one line with the key, its value and what is allowed.
    """
    if isinstance(values, Mapping):
        refuse_secrets(values)
    config = typed(Config, _with_package(values))
    config = dataclasses.replace(config, data=with_inherited(config.data))
    for key in (*COMPUTED, "accuracy_aware.quantizers_sha256"):
        value, default = map(attrgetter(key), (config, Config()))
        if value != default:
            raise refused(key, value, "nothing: it is computed")
    _check_model(config.model)
    _check_data(config)
    _check_metric(config)
    _check_quantization(config)
    _check_layerwise_tuning(config.layerwise_tuning)
    _check_target_device(config)
    _check_accuracy_aware(config)
    _check_tune(config)
    _check_cluster(config.cluster)
    _check_tracking(config.tracking)
    _check_register(config.tracking)
    _check_limits(config)
    return config


def with_inherited(data: Data) -> Data:
    """The samples with `validation` in full: without a `_target_` of its own it is a set like `calibration`, with the same arguments
    but for those that it names.
    """
    if data.validation is None or "_target_" in data.validation:
        return data
    return dataclasses.replace(data, validation=data.calibration | data.validation)


def _with_package(values: object) -> object:
    """`values` without the demand for a path of `model: local` where a package is named instead."""
    model = values.get("model") if isinstance(values, Mapping) else None
    package = model.get("package") if isinstance(model, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(model, Mapping) or not isinstance(package, Mapping):
        return values
    if any(package.values()) and model.get("path") == MISSING:
        return {**values, "model": {**model, "path": None}}
    return values


# ------------------------------------------------------------------------------------------------ model, data, metric


def _check_model(model: Model) -> None:
    package = {"requirement": model.package.requirement, "member": model.package.member}
    given = {f"model.package.{name}": value for name, value in package.items() if value}
    if model.path is not None:
        for key, value in given.items():
            raise ConfigError(f"model.path: {show(model.path)} and {key}: {show(value)} contradict each other; give only one of the two")
        if not is_there(model.path):
            raise refused("model.path", model.path, f"an existing file{of_a_copy(model.path)}")
    elif not given:
        raise ConfigError("model.path: null is not allowed together with model.package.requirement: null; give one of the two")
    else:
        for name, text in package.items():
            if not text:
                raise refused(f"model.package.{name}", text, "text; a package needs requirement and member")
        if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[^\]]*\])?\s*==\s*[A-Za-z0-9.!+_-]+", str(model.package.requirement)):
            raise refused("model.package.requirement", model.package.requirement, "name==version with an exact version")
        if model.sha256 is None:
            raise refused("model.sha256", None, "64 hexadecimal digits, the SHA-256 of model.package.member")
    if model.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", model.sha256):
        raise refused("model.sha256", model.sha256, "64 hexadecimal digits, or null")
    for name, shape in model.input_shape.items():
        if not all(size == -1 or size > 0 for size in shape):
            raise refused(f"model.input_shape.{name}", shape, "positive sizes, or -1 for a dynamic one")


def _check_data(config: Config) -> None:
    data = config.data
    user_classes.check(data.calibration, "data.calibration")
    if data.validation is not None:
        user_classes.check(data.validation, "data.validation")
    subset, size = config.quantization.stat_subset_size, data.calibration_size
    if subset is not None and size is not None and subset > size:
        raise refused("quantization.stat_subset_size", subset, f"at most data.calibration_size, which is {size}, or null for all")
    if data.streams and data.shuffle:
        raise refused("data.shuffle", True, "false with data.streams, whose samples stay in order")


def _check_metric(config: Config) -> None:
    if not config.metric:
        raise refused("metric", {}, "at least one metric, e.g. `override /metric: reference_error` in the defaults of params.yaml")
    for name, section in config.metric.items():
        user_classes.check(section, f"metric.{name}")
    primary = config.evaluate.primary_metric
    if primary is not None and primary not in config.metric:
        raise refused("evaluate.primary_metric", primary, f"one of {', '.join(config.metric)}, or null for the first")


# ------------------------------------------------------------------------------------------------ quantization


def _check_quantization(config: Config) -> None:
    quantization = config.quantization
    schemes = {"quantization.weights": quantization.weights, "quantization.activations": quantization.activations}
    for key, scheme in schemes.items():
        _check_levels(scheme, key)
        if scheme.range_estimator is not None:
            _check_estimator(scheme.range_estimator, f"{key}.range_estimator")
    _check_estimator(quantization.range_estimator, "quantization.range_estimator")
    _check_weights_estimator(quantization.weights)
    _check_ignored(quantization.ignored)
    if quantization.preset == "auto" and quantization.pot_compatible:
        others = ", ".join(preset for preset in PRESETS if preset != "auto")
        raise refused("quantization.preset", "auto", f"one of {others} with quantization.pot_compatible: true, as POT has no other presets")
    for key in ("outlier_probs", "channel_outlier_probs"):
        for index, probability in enumerate(getattr(config.collect_statistics, key)):
            if not 0.0 < probability < 0.5:
                raise refused(f"collect_statistics.{key}[{index}]", probability, "a number above 0.0 and below 0.5")


def _check_levels(scheme: Scheme, key: str) -> None:
    low, high = scheme.level_low, scheme.level_high
    if low is None and high is None:
        return
    if low is None:
        raise refused(f"{key}.level_low", low, f"an integer, as {key}.level_high is {high}; or null for both")
    if high is None:
        raise refused(f"{key}.level_high", high, f"an integer, as {key}.level_low is {low}; or null for both")
    if low >= high:
        raise refused(f"{key}.level_low", low, f"less than {key}.level_high, which is {high}")
    if scheme.bits is not None and high - low + 1 > 2**scheme.bits:
        raise refused(f"{key}.bits", scheme.bits, f"enough for the {high - low + 1} levels from level_low {low} to level_high {high}")


def _check_estimator(estimator: RangeEstimator, key: str) -> None:
    for border, entry, allowed in (("min", estimator.min, LOWER_TYPES), ("max", estimator.max, UPPER_TYPES)):
        name = f"{key}.{border}"
        if entry.type is not None and entry.type not in allowed:
            raise refused(f"{name}.type", entry.type, f"one of {', '.join(allowed)}, or null for what the preset says")
        by_preset = estimator.preset == "quantile"
        if entry.type in SHARE_TYPES and entry.outlier_prob is None and not by_preset:
            raise refused(f"{name}.outlier_prob", None, f"a number above 0.0 and below 0.5, as {name}.type is {show(entry.type)}")
        quantile = entry.type in SHARE_TYPES or (entry.type is None and by_preset)
        if entry.outlier_prob is not None and not quantile:
            fitting = " or ".join(item for item in allowed if item in SHARE_TYPES)
            raise refused(f"{name}.outlier_prob", entry.outlier_prob, f"null, as {name}.type is {show(entry.type)} and not {fitting}")
        pooled = entry.type in POOLED_TYPES or (entry.type is None and estimator.preset in POOLED_PRESETS)
        if entry.aggregator is not None and pooled:
            what = f"{name}.type is {show(entry.type)}" if entry.type else f"{key}.preset is {show(estimator.preset)}"
            raise refused(f"{name}.aggregator", entry.aggregator, f"null, as {what}, which looks at all samples together")
    low, high = estimator.min.clipping_value, estimator.max.clipping_value
    if low is not None and high is not None and low >= high:
        raise refused(f"{key}.min.clipping_value", low, f"less than {key}.max.clipping_value, which is {high}")


def _check_weights_estimator(weights: Scheme) -> None:
    """Refuse what would do nothing for weights."""
    if weights.range_estimator is None:
        return
    key = "quantization.weights.range_estimator"
    lower, upper = weights.range_estimator.min, weights.range_estimator.max
    for name, entry in (("min", lower), ("max", upper)):
        if entry.aggregator is not None:
            raise refused(f"{key}.{name}.aggregator", entry.aggregator, "null: there are no samples of weights to aggregate")
        if entry.type in POOLED_TYPES and entry.type != "histogram":
            raise refused(f"{key}.{name}.type", entry.type, "histogram or a type of one sample, as weights have no samples")
    if weights.mode == "symmetric" and lower != Estimator():
        given = {name: value for name, value in dataclasses.asdict(lower).items() if value is not None}
        raise refused(f"{key}.min", given, "nothing set, as quantization.weights.mode is 'symmetric' and has only a max")


def _check_ignored(ignored: Ignored) -> None:
    _check_names(ignored.scope, "quantization.ignored.scope")


def _check_names(names: Iterable[str], key: str) -> None:
    """Check a list of names and regular expressions."""
    for index, name in enumerate(names):
        if name.startswith("re:"):
            try:
                re.compile(name.removeprefix("re:"))
            except re.error as error:
                raise refused(f"{key}[{index}]", name, f"re: and a regular expression ({error})") from None


# ------------------------------------------------------------------------------------------------ tune


def _check_tune(config: Config) -> None:
    tune, space = config.tune, config.tune.space
    for key, values, allowed in (
        ("tuning_scope", space.tuning_scope, TUNING_SCOPE),
        ("estimator_tuning_scope", space.estimator_tuning_scope, ESTIMATOR_TUNING_SCOPE),
    ):
        for index, value in enumerate(values):
            if value not in allowed:
                expected = f"one of {', '.join(allowed)}; {nearest(value, allowed)}".rstrip("; ")
                raise refused(f"tune.space.{key}[{index}]", value, expected)
    if not space.tuning_scope:
        raise refused("tune.space.tuning_scope", [], f"at least one of {', '.join(TUNING_SCOPE)}")
    if "range_estimator" in space.tuning_scope and not space.estimator_tuning_scope:
        raise refused("tune.space.estimator_tuning_scope", [], f"at least one of {', '.join(ESTIMATOR_TUNING_SCOPE)}, with range_estimator")
    tuned = "range_estimator" in space.tuning_scope and "outlier_prob" in space.estimator_tuning_scope
    if tuned and not space.outlier_prob_choices:
        raise refused("tune.space.outlier_prob_choices", [], "at least one number above 0.0 and below 0.5, with outlier_prob in the scope")
    for index, probability in enumerate(space.outlier_prob_choices):
        if not 0.0 < probability < 0.5:
            raise refused(f"tune.space.outlier_prob_choices[{index}]", probability, "a number above 0.0 and below 0.5")
    for key in ("include", "exclude"):
        _check_names(getattr(space, key), f"tune.space.{key}")
    size = config.quantization.stat_subset_size or config.data.calibration_size
    if space.stat_subset_size is not None and size is not None and space.stat_subset_size > size:
        raise refused("tune.space.stat_subset_size", space.stat_subset_size, f"at most {size}, for so many samples are collected, or null")
    _check_goal(config)
    if tune.benchmark.requests and tune.benchmark.hint == "latency":
        raise refused("tune.benchmark.requests", tune.benchmark.requests, "0, as tune.benchmark.hint is 'latency': one inference at a time")


def _check_goal(config: Config) -> None:
    tune = config.tune
    names = [entry.name for entry in tune.metrics]
    for index, entry in enumerate(tune.metrics):
        if entry.name not in config.metric:
            raise refused(f"tune.metrics[{index}].name", entry.name, f"one of {', '.join(config.metric)}")
        if entry.name in names[:index]:
            raise refused(f"tune.metrics[{index}].name", entry.name, "a metric that is not in the list already")
        if entry.baseline_value == 0:
            raise refused(f"tune.metrics[{index}].baseline_value", 0, "a number other than 0, of which a loss can be a share")
    weights = {key: getattr(tune, key) for key in ("accuracy_weight", "latency_weight", "quantization_ratio_weight")}
    if tune.objective == "pot_loss" and not any(weights.values()):
        keys = ", ".join(f"tune.{key}" for key in weights)
        raise ConfigError(f"{keys}: 0 is not allowed for all of them; expected at least one above 0: with none all trials are alike")
    if tune.eval_subset_size and config.data.validation_size and tune.eval_subset_size > config.data.validation_size:
        raise refused(
            "tune.eval_subset_size", tune.eval_subset_size, f"at most data.validation_size, which is {config.data.validation_size}"
        )


def _check_layerwise_tuning(tuning: LayerwiseTuning) -> None:
    if not tuning.use_layerwise_tuning:
        return
    key = "layerwise_tuning"
    if tuning.batch_size > tuning.num_samples_for_tuning:
        limit = f"at most {key}.num_samples_for_tuning, which is {tuning.num_samples_for_tuning}"
        raise refused(f"{key}.batch_size", tuning.batch_size, limit)
    rates = dataclasses.asdict(tuning.learning_rate)
    if not any(rates.values()):
        raise refused(f"{key}.learning_rate", rates, f"some rate above 0, as {key}.use_layerwise_tuning is true")


# ------------------------------------------------------------------------------------------------ device, tracking


def _check_target_device(config: Config) -> None:
    """Check the device's tables, and that some operation on it has the schemes that are asked for."""
    # Imports no NumPy, only the tables' arithmetic.
    from stages.configuration.target_device import read_target, restrict

    target = read_target(config.target_device)
    quantization = config.quantization
    for group, wanted in (("weights", quantization.weights), ("activations", quantization.activations)):
        alternatives = {scheme: None for groups in target.operations.values() for scheme in groups.get(group, ())}
        restrict(tuple(alternatives), wanted, f"quantization.{group}", quantization.allow_unsupported)


def _check_accuracy_aware(config: Config) -> None:
    settings, key = config.accuracy_aware, "accuracy_aware"
    names = [entry.name for entry in settings.metrics]
    for index, entry in enumerate(settings.metrics):
        place = f"{key}.metrics[{index}]"
        if entry.name not in config.metric:
            raise refused(f"{place}.name", entry.name, f"one of the metrics that are computed: {', '.join(config.metric)}")
        if entry.name in names[:index]:
            raise refused(f"{place}.name", entry.name, "each metric only once")
        if entry.baseline_value is None and any(other.baseline_value is not None for other in settings.metrics):
            raise refused(f"{place}.baseline_value", None, "a number, as other metrics have one: give it for all or for none")
        if entry.baseline_value == 0 and settings.drop_type == "relative":
            raise refused(f"{place}.baseline_value", 0.0, f"another number, as {key}.drop_type is 'relative'")
    size = config.data.validation_size
    if size is not None and settings.ranking_subset_size is not None and settings.ranking_subset_size > size:
        raise refused(f"{key}.ranking_subset_size", settings.ranking_subset_size, f"at most data.validation_size, which is {size}, or null")
    tunable = settings.base_algorithm == "TunableQuantization"
    if tunable and (settings.quantizers is None or not Path(settings.quantizers).is_file()):
        expected = f"an existing file, as {key}.base_algorithm is 'TunableQuantization'; paths start at the project's folder"
        raise refused(f"{key}.quantizers", settings.quantizers, expected)
    if settings.quantizers is not None and not tunable:
        raise refused(f"{key}.quantizers", settings.quantizers, f"null, as {key}.base_algorithm is {show(settings.base_algorithm)}")
    if settings.convert_to_mixed_preset and config.quantization.preset != "performance":
        expected = f"false, as quantization.preset is {show(config.quantization.preset)} and not 'performance'"
        raise refused(f"{key}.convert_to_mixed_preset", True, expected)


def _check_cluster(cluster: Cluster) -> None:
    if cluster.start is not None:
        if cluster.kind != "dask":
            raise refused("cluster.start", cluster.start, f"null, as cluster.kind is {show(cluster.kind)} and not 'dask'")
        if cluster.address is not None:
            raise refused("cluster.address", cluster.address, "null, as cluster.start starts a cluster of its own")
        user_classes.check(cluster.start, "cluster.start")
    if cluster.address is None:
        return
    if cluster.kind != "dask":
        raise refused("cluster.address", cluster.address, f"null, as cluster.kind is {show(cluster.kind)} and not 'dask'")
    if "://" not in cluster.address:
        raise refused("cluster.address", cluster.address, "a scheduler's address like tcp://10.0.0.1:8786, or null for a local cluster")


def _check_tracking(tracking: Tracking) -> None:
    if has_password(tracking.tracking_uri):
        raise ConfigError(
            "tracking.tracking_uri: a password or token is not allowed, as the configuration is stored and logged; expected an address "
            "without one, and the whole address in the environment's MLFLOW_TRACKING_URI"
        )
    scheme, separator, _ = tracking.tracking_uri.partition("://")
    # MLflow's file store, which a bare path also means, no longer works.
    if tracking.enabled and (not separator or scheme in ("", "file")):
        raise refused("tracking.tracking_uri", tracking.tracking_uri, "sqlite:///mlflow.db, another database, or a server's address")


def _check_register(tracking: Tracking) -> None:
    if tracking.register is None:
        return
    if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", tracking.register):
        raise refused("tracking.register", tracking.register, "a name of letters, digits, dots, dashes and underscores, or null")
    if not tracking.log_models:
        raise refused("tracking.register", tracking.register, "null, as tracking.log_models is false")


def _check_limits(config: Config) -> None:
    if config.package.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.package.name):
        raise refused("package.name", config.package.name, "a file name of letters, digits, dots, dashes and underscores")
    for name, limit in config.check.metrics.items():
        if name not in config.metric:
            raise refused(f"check.metrics.{name}", limit, f"one of the metrics that are computed: {', '.join(config.metric)}")
        if limit < 0:
            raise refused(f"check.metrics.{name}", limit, "a number of at least 0")
