"""Compose the configuration from conf/ and params.yaml, check it, and write it in full to build/config.json.

params.yaml is the last layer, so what it says wins. Every mistake in the configuration is found here, in well under a
second and before any other stage runs. It always runs, because DVC does not watch the model and data files that the configuration
names: their hashes become part of it, and what has changed re-runs what it concerns.

Examples:
    dvc repro config                 # after an edit of params.yaml: is everything in it valid?
    python -m stages.config          # the same without DVC
    dvc params diff                  # what changed since the last commit, defaults included
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.common.fingerprints import Fingerprints, paths_in
from stages.common.messages import nearest, show, unknown
from stages.common.model_files import files_of
from stages.configuration import user_classes
from stages.configuration.schema import Config, RangeEstimator, TargetDevice
from stages.configuration.validation import checked, typed

CONF = Path("conf")
PARAMS = Path("params.yaml")

# The quantile preset's, and what the search spaces start from: always stored, so that trying them needs no other pass.
DEFAULT_OUTLIER_PROB = 1e-4
TUNED_OUTLIER_PROBS = (1e-3, 1e-4)  # what accuracy_aware.tune_hyperparams tries


def load_config(path: Path = artifacts.CONFIG) -> Config:
    """The configuration that the `config` stage checked and wrote.

    Raises:
        UserError: when it is missing, damaged, or does not fit this version of the schema.
    """
    return typed(Config, artifacts.read_json(path))


def compose(overrides: Sequence[str] = (), params: Path = PARAMS) -> dict[str, Any]:
    """The merged but unchecked configuration of the project in the current folder.

    Args:
        overrides: Hydra overrides on top of params.yaml, e.g. `quantization.preset=mixed` or `data=arrays`.
        params: A file of this name in another folder, in place of the project's own.

    Raises:
        ConfigError: when a file is not valid YAML, a group option does not exist, an override does not fit, or params.yaml hides
            a part of the experiment.
    """
    values = merge(overrides, params)
    _check_experiment(overrides, params)
    return values


def merge(overrides: Sequence[str] = (), params: Path = PARAMS, *, resolve: bool = True) -> dict[str, Any]:
    """What `compose` checks; interpolations stay as they are unless they are to be resolved."""
    import hydra
    from omegaconf import OmegaConf

    place = [f"hydra.searchpath=['file://{params.parent.resolve()}']"] if params != PARAMS else []
    with composing():
        values = OmegaConf.to_container(hydra.compose("config", overrides=[*place, *overrides]), resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def composing() -> Iterator[None]:
    """Hydra set up for conf/, its errors in one line each."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            yield
    except MissingConfigException as error:
        raise ConfigError(_no_such_option(error.missing_cfg_file, error.options, str(error))) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_composition_error(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_error(error)) from None


def completed(config: Config) -> Config:
    """The configuration with everything that follows from it filled in, so that stages depend on what they use.

    Of the probabilities of quantile estimators the largest becomes part of `collect_statistics`, because tails that reach its
    quantile hold all that are further out: statistics then do not depend on the estimators themselves. Quantiles per channel,
    which take a third more time, are only stored where an estimator asks. Of the bias corrections only the accurate one
    depends on the engine, and so does layer-wise tuning, which gets the project's seed. The device's tables get a hash, which
    stands for them in dvc.lock: a hundred lines, four times, would double what DVC reads and writes with every stage. The primary
    metric gets its name, because DVC does not see the order of keys. The user's own files get their hashes, because DVC does not
    look at them.
    """
    quantization = config.quantization
    estimators = [quantization.activations.range_estimator or RangeEstimator(), quantization.range_estimator]
    borders = [border for estimator in estimators for border in (estimator.min, estimator.max)]
    wanted = {border.outlier_prob for border in borders if border.outlier_prob is not None}
    aware = config.accuracy_aware
    if aware.enabled and aware.tune_hyperparams:
        wanted |= set(TUNED_OUTLIER_PROBS)
    if any(estimator.preset == "quantile" for estimator in estimators):
        wanted.add(DEFAULT_OUTLIER_PROB)
    space = config.tune.space
    if config.tune.enabled and "range_estimator" in space.tuning_scope:
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
        correction_engine=config.engine if accurate or tuning.use_layerwise_tuning else None,
        accuracy_aware=dataclasses.replace(
            aware, quantizers_sha256=artifacts.file_sha256(Path(aware.quantizers)) if aware.quantizers else None
        ),
        evaluate=dataclasses.replace(config.evaluate, primary_metric=config.evaluate.primary_metric or next(iter(config.metric))),
        target_device_sha256=_sha256(config.target_device),
        user_code=_user_code([config.data.calibration, config.data.validation, *config.metric.values()]),
        files=_files(config),
    )


def create(section: Mapping[str, Any], key: str) -> Any:
    """An instance of the class that `section` names by `_target_`.

    Args:
        section: `_target_` and the class's arguments.
        key: where the section stands in the configuration, for messages.

    Raises:
        UserError: what the class itself refuses. Any other exception of the class keeps its traceback.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(section), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise UserError(f"{key}: {cause}") from cause
        if cause is not None:
            raise cause from None
        raise ConfigError(f"{key}: {error}") from error


def main() -> None:
    """Write build/config.json, and not YAML: DVC takes a tenth of a second to read that, once for every stage."""
    artifacts.write_json(artifacts.CONFIG, dataclasses.asdict(completed(checked(compose()))))


def _sha256(device: TargetDevice) -> str:
    """SHA-256 of a device's tables; their order counts, because faster schemes come first."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(device)).encode()).hexdigest()


def _files(config: Config) -> dict[str, dict[str, str]]:
    """What the user's files and folders hold, by section and name."""
    root = Path.cwd()
    with Fingerprints() as fingerprints:
        named = {
            "model": _model_files(config.model.path, fingerprints),
            "data": sorted({*paths_in([config.data.calibration, config.data.validation], root)}),
            "metric": sorted({*paths_in(config.metric, root)}),
        }
        return {section: {path.as_posix(): fingerprints.of(path) for path in paths} for section, paths in named.items()}


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


def _check_experiment(overrides: Sequence[str], params: Path) -> None:
    """Refuse an experiment of which params.yaml, coming later, would hide one half: the rest makes no sense without it."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    chosen = choices(params)
    name = given.get("experiment", chosen.get("experiment"))
    for group, option in choices(CONF / "experiment" / f"{name}.yaml").items():
        if group not in given and chosen.get(group, option) != option:
            raise ConfigError(
                f"defaults: 'override /{group}: {chosen[group]}' in {PARAMS} hides what the experiment '{name}' chooses, {show(option)}; "
                "expected only one of them: remove that line, or the experiment"
            )


def choices(path: Path) -> dict[str, Any]:
    """The options that the `override /group: option` lines of a file choose."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    entries = content.get("defaults") if isinstance(content, dict) else None
    pairs = [pair for entry in entries or () if isinstance(entry, dict) for pair in entry.items()]
    return {str(key).removeprefix("override /"): option for key, option in pairs if str(key).startswith("override /")}


def _no_such_option(config_name: str | None, options: Sequence[str] | None, message: str) -> str:
    group, _, option = (config_name or "").rpartition("/")
    if not group:
        return message
    listed = ", ".join(sorted(options or ())) or "none"
    return f"{group}: there is no option '{option}' in conf/{group}/; expected one of {listed}"


def _composition_error(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages in one line, without their internals."""
    cause = error.__cause__
    if isinstance(cause, yaml.YAMLError):
        return _yaml_error(cause)
    text = str(error)
    if match := re.search(r"Could not override '([^'@]+)[^']*'\. No match in the defaults list", text):
        groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
        return f"defaults: there is no group '{match[1]}'; {nearest(match[1], groups)}the groups are {', '.join(groups)}"
    if match := re.search(r"use \+(\S+?)=(.*)", text):
        return _unknown_override(match[1], match[2]) or text.splitlines()[0]
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    message = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
    message = re.sub(r"^In '([^']+)': ", lambda match: f"{_file(match[1])}: ", message)
    return f"{key}: {message}" if key else message


def _file(config_name: str) -> str:
    """The file behind one of Hydra's names."""
    return "params.yaml" if config_name == "params" else f"{CONF}/{config_name}.yaml"


def _unknown_override(key: str, value: str) -> str | None:
    """The message for an override of a key that the schema does not have."""
    section: Any = Config()
    *parents, _ = key.split(".")
    for name in parents:
        section = getattr(section, name, None)
    if not dataclasses.is_dataclass(section):
        return None
    return unknown(key, value, [field.name for field in dataclasses.fields(section)])


def _yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"not valid YAML: {problem}"
    name = Path(mark.name)
    shown = name.relative_to(Path.cwd()) if name.is_absolute() and name.is_relative_to(Path.cwd()) else name
    return f"{shown}, line {mark.line + 1}: not valid YAML: {problem}"


if __name__ == "__main__":
    from stages.stage import execute

    execute("config", main)
