"""Secrets in the arguments of users' classes: the environment's, of which only the name is stored, or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stages.common.errors import ConfigError
from stages.common.passwords import is_secret, is_secret_name

SECTIONS = ("model", "data", "metric", "cluster")
_VARIABLE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")


def without_secrets(resolved: Any, raw: Any) -> Any:
    """`resolved`, the whole configuration, with `${oc.env:NAME}` in place of each value that is a secret of the environment.

    What is not secret stays as it is, so that another value in the environment re-runs what it concerns.

    Args:
        resolved: Sections, with interpolations resolved.
        raw: The same, interpolations as they stand.
    """
    texts = {section: raw.get(section) for section in SECTIONS}
    values = {section: resolved.get(section) for section in SECTIONS}
    secret = set()
    for (key, text), (_, value) in zip(_leaves(texts), _leaves(values), strict=True):
        for variable in _VARIABLE.findall(text) if isinstance(text, str) else ():
            if is_secret_name(variable) or is_secret(_name(key), value):
                secret.add(variable)
    stand_ins = {value: f"${{oc.env:{name}}}" for name in sorted(secret) if (value := os.environ.get(name))}
    return {**resolved, **{name: _replaced(value, texts[name], stand_ins) for name, value in values.items() if name in resolved}}


def refuse_secrets(config: Mapping[str, Any]) -> None:
    """Refuse a secret that is written down.

    Raises:
        ConfigError: naming its key, not its value.
    """
    for key, value in _leaves({section: config.get(section) for section in SECTIONS}):
        if is_secret(_name(key), value):
            variable = re.sub(r"\W", "_", _name(key)).upper()
            raise ConfigError(
                f"{key}: a secret is not allowed here, as the configuration is stored and logged; expected ${{oc.env:{variable}}}, "
                f"and the secret in the environment's {variable}: only its name is stored"
            )


def _name(key: str) -> str:
    """The argument that a key belongs to: `headers` for `data.calibration.headers[0]`."""
    return re.sub(r"\[\d+\]", "", key).rpartition(".")[2]


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from _leaves(value, f"{key}[{index}]")
    else:
        yield key, values


def _replaced(value: Any, text: Any, stand_ins: Mapping[str, str]) -> Any:
    """`value` with secrets replaced, in what `text` makes by interpolation, directly or through other keys."""
    if isinstance(value, Mapping):
        return {name: _replaced(inner, text[name] if isinstance(text, Mapping) else text, stand_ins) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, text[index] if isinstance(text, list) else text, stand_ins) for index, inner in enumerate(value)]
    if isinstance(value, str) and isinstance(text, str) and "${" in text:
        for secret, stand_in in stand_ins.items():
            value = value.replace(secret, stand_in)
    return value
