"""Composition of the configuration from conf/, params.yaml and overrides with Hydra, its errors in one line each."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from stages.common.errors import ConfigError
from stages.common.messages import nearest, show, unknown
from stages.configuration.schema import Config
from stages.configuration.secrets import without_secrets

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
    """What `compose` checks; interpolations stay as they are unless they are to be resolved, and those of secrets always."""
    import hydra
    from omegaconf import OmegaConf

    place = [f"hydra.searchpath=['file://{params.parent.resolve()}']"] if params != PARAMS else []
    _check_file(params)
    with composing():
        composed = hydra.compose("config", overrides=[*place, *additions(overrides)])
        values = OmegaConf.to_container(composed, resolve=False)
        if resolve:
            values = without_secrets(OmegaConf.to_container(composed, resolve=True), values)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def additions(overrides: Sequence[str]) -> list[str]:
    """`overrides`, with `++`, Hydra's mark of what may be new, at keys that the schema leaves to the user, such as `model.input_shape.x`.

    Whether there may be such a key is for the checks of the configuration to say.
    """
    return [f"++{override}" if _is_free(override.partition("=")[0]) else override for override in overrides]


def _is_free(key: str) -> bool:
    """Whether a dotted key is, or is in, a mapping with keys of the user's own."""
    kinds = [get_origin(kind) for kind in _kinds(key)]
    return dict in kinds and not (CONF / key).is_dir()  # of a group, options are chosen


def _kinds(key: str) -> list[Any]:
    """The types that the schema has for a dotted key, `dict[...]` for all keys in such a mapping; empty where it has none."""
    kinds: list[Any] = [Config]
    for name in key.split("."):
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        annotations = get_type_hints(section) if section else {}
        if name not in annotations:
            return [kind for kind in kinds if get_origin(kind) is dict]
        kinds = [annotations[name], *(kind for kind in get_args(annotations[name]) if get_origin(annotations[name]) is types.UnionType)]
    return kinds


def _shape(key: str) -> type | None:
    """What the schema expects at a key: `dict` a section, `list` a list; None: neither, or nobody knows."""
    kinds = _kinds(key)
    inside_free = "." in key and _is_free(key.rpartition(".")[0])
    if inside_free:
        return None
    shapes = [get_origin(kind) for kind in kinds] + [dict for kind in kinds if dataclasses.is_dataclass(kind)]
    return next((shape for shape in shapes if shape in (dict, list)), None)


def _check_shapes(content: Mapping[Any, Any], prefix: str = "") -> None:
    """Refuse a list where a section belongs, and the reverse: Hydra says of neither where it is."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        expected = _shape(key)
        if isinstance(value, dict | list) and expected is not None and not isinstance(value, expected):
            raise ConfigError(_wrong_shape(key, show(value)))
        if isinstance(value, dict) and key != "defaults":
            _check_shapes(value, f"{key}.")


def _wrong_shape(key: str, shown: str) -> str:
    expected = _shape(key)
    if expected is None:
        return f"{key}: a list stands where a section is expected, or the reverse"
    return f"{key}: {shown} is not allowed; expected {'a section' if expected is dict else 'a list'}"


def _check_file(path: Path) -> None:
    """Refuse a params.yaml that is no section of keys: Hydra takes a list for an empty one, and stops with a traceback at bytes."""
    if not path.is_file():
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise ConfigError(f"{PARAMS}, line {line}: byte {byte:#04x} is not UTF-8; expected a text file in UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = path.read_text(encoding="utf-8")[: error.position].count("\n") + 1
        raise ConfigError(f"{PARAMS}, line {line}: not valid YAML: the character {chr(error.character)!a} is not allowed") from None
    except (yaml.YAMLError, OSError):
        return  # Hydra's words are better
    if content is not None and not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else show(content)
        raise ConfigError(f"{PARAMS}: {kind} is not allowed; expected keys and their values, as in `quantization: {{preset: mixed}}`")
    defaults = (content or {}).get("defaults", [])
    if not isinstance(defaults, list):
        raise ConfigError(f"defaults: {show(defaults)} is not allowed; expected a list such as [override /model: local, _self_]")
    _check_shapes(content or {})


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
    except (HydraException, OmegaConfBaseException, ValueError) as error:
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
    listed = ", ".join(sorted(options or (path.stem for path in (CONF / group).glob("*.yaml")))) or "none"
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
        return _unknown_override(match[1], match[2])
    if match := re.search(r"Could not override '(\S+)'", text):
        return _unknown_override(match[1], None)
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    message = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
    if "Cannot merge DictConfig with ListConfig" in message:  # said of either mistake
        return _wrong_shape(str(key or message), "a list" if _shape(str(key)) is dict else "a section")
    message = re.sub(r"^In '([^']+)': ", lambda match: f"{_file(match[1])}: ", message)
    return f"{key}: {message}" if key else message


def _file(config_name: str) -> str:
    """The file behind one of Hydra's names."""
    return "params.yaml" if config_name == "params" else f"{CONF}/{config_name}.yaml"


def _unknown_override(key: str, value: str | None) -> str:
    """The message for an override of a key that the schema does not have: for the first of its names that is not there."""
    section: Any = Config()
    names = key.split(".")
    for place, name in enumerate(names):
        if not dataclasses.is_dataclass(section):
            break
        known = [field.name for field in dataclasses.fields(section)]
        if name not in known:
            return unknown(".".join(names[: place + 1]), value, known)
        section = getattr(section, name)
    return f"{key}: cannot be set; {key.rpartition('.')[0]} is no section"


def _yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"not valid YAML: {problem}"
    name = Path(mark.name)
    shown = name.relative_to(Path.cwd()) if name.is_absolute() and name.is_relative_to(Path.cwd()) else name
    return f"{shown}, line {mark.line + 1}: not valid YAML: {problem}"
