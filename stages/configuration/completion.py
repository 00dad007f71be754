"""Completion of the configuration: what follows from it is filled in, so that stages depend on what they use."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.common import artifacts
from stages.common.fingerprints import Fingerprints, paths_in
from stages.common.model_files import files_of
from stages.configuration import user_classes
from stages.configuration.schema import Config, Engine, Files, RangeEstimator, TargetDevice

# The quantile preset's, and what the search spaces start from: always stored, so that trying them needs no other pass.
DEFAULT_OUTLIER_PROB = 1e-4
TUNED_OUTLIER_PROBS = (1e-3, 1e-4)  # what accuracy_aware.tune_hyperparams tries


def completed(config: Config) -> Config:
    """The configuration with everything that follows from it filled in, so that stages depend on what they use.

    Of the probabilities of quantile estimators the largest becomes part of `collect_statistics` (a percentile reads the
    distribution, which is stored anyway), because tails that reach its quantile hold all that are further out: statistics then do
    not depend on the estimators themselves. Quantiles per channel, which take a third more time, are only stored where an
    estimator asks. Of the bias corrections only the accurate one depends on the engine, and so does layer-wise tuning, which gets
    the project's seed. The device's tables get a hash, which stands for them in dvc.lock: a hundred lines, four times, would
    double what DVC reads and writes with every stage. The primary metric gets its name, because DVC does not see the order of
    keys. The user's own files get their hashes, because DVC does not look at them.
    """
    quantization = config.quantization
    estimators = [quantization.activations.range_estimator or RangeEstimator(), quantization.range_estimator]
    borders = [border for estimator in estimators for border in (estimator.min, estimator.max)]
    wanted = {border.outlier_prob for border in borders if border.outlier_prob is not None and border.type != "percentile"}
    aware = config.accuracy_aware
    if aware.enabled and aware.tune_hyperparams:
        wanted |= set(TUNED_OUTLIER_PROBS)
    if any(estimator.preset == "quantile" for estimator in estimators):
        wanted.add(DEFAULT_OUTLIER_PROB)
    space = config.tune.space
    quantiles = {"preset", "type", "outlier_prob"} & {*space.estimator_tuning_scope}
    if config.tune.enabled and "range_estimator" in space.tuning_scope and quantiles:
        wanted |= {DEFAULT_OUTLIER_PROB, *(space.outlier_prob_choices if "outlier_prob" in space.estimator_tuning_scope else ())}
    given = config.collect_statistics
    statistics = dataclasses.replace(
        given,
        outlier_probs=[max({DEFAULT_OUTLIER_PROB, *given.outlier_probs, *wanted})],
        channel_outlier_probs=sorted({*given.channel_outlier_probs, *wanted})[-1:],
        perchannel=given.perchannel or quantization.activations.granularity == "perchannel",
        pot_compatible=given.pot_compatible or quantization.pot_compatible,
    )
    correction, tuning = config.bias_correction, config.layerwise_tuning
    accurate = correction.enabled and not correction.use_fast_bias
    if tuning.use_layerwise_tuning and tuning.seed is None:
        tuning = dataclasses.replace(tuning, seed=config.seed)
    return dataclasses.replace(
        config,
        collect_statistics=statistics,
        layerwise_tuning=tuning,
        # Always in f32, whatever models are evaluated in.
        correction_engine=(
            dataclasses.replace(config.engine, inference_precision=Engine().inference_precision)
            if accurate or tuning.use_layerwise_tuning
            else None
        ),
        accuracy_aware=dataclasses.replace(
            aware, quantizers_sha256=artifacts.file_sha256(Path(aware.quantizers)) if aware.quantizers else None
        ),
        evaluate=dataclasses.replace(config.evaluate, primary_metric=config.evaluate.primary_metric or next(iter(config.metric))),
        target_device_sha256=_sha256(config.target_device),
        user_code=_user_code([config.data.calibration, config.data.validation, *config.metric.values()]),
        files=_files(config),
    )


def _sha256(device: TargetDevice) -> str:
    """SHA-256 of a device's tables; their order counts, because faster schemes come first."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(device)).encode()).hexdigest()


def _files(config: Config) -> Files:
    """What the user's files and folders hold, by section and name."""
    root = Path.cwd()
    with Fingerprints() as fingerprints:

        def hashes(paths: Iterable[Path]) -> dict[str, str]:
            return {path.as_posix(): fingerprints.of(path) for path in sorted(set(paths))}

        return Files(
            model=hashes(_model_files(config.model.path, fingerprints)),
            data=hashes(paths_in([config.data.calibration, config.data.validation], root)),
            metric=hashes(paths_in(config.metric, root)),
        )


def _model_files(name: str | None, fingerprints: Fingerprints) -> list[Path]:
    path = Path(name or "")
    if path.is_dir():
        return [path] if name else []
    if not path.is_file():
        return []
    files = fingerprints.recall(path, " of model", lambda: "\n".join(map(str, files_of(path)))).split("\n")
    return [Path(file) for file in files if Path(file).is_file()]


def _user_code(sections: Sequence[object]) -> dict[str, str]:
    """SHA-256 of the files inside the project, but outside stages/, that a `_target_` names, and of those that they import."""
    root = Path.cwd()
    files = user_classes.with_imports({path for section in sections for path in user_classes.source_files(section)})
    own = sorted(path.resolve().relative_to(root) for path in files if path.resolve().is_relative_to(root))
    return {path.as_posix(): artifacts.file_sha256(path) for path in own if path.parts[0] != "stages" and "site-packages" not in path.parts}
