"""Composition of the configuration from conf/, params.yaml and overrides with Hydra, its errors in one line each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import ConfigError
from stages.common.messages import nearest, show, unknown
from stages.configuration.schema import Config

CONF = Path("conf")
PARAMS = Path("params.yaml")


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
