"""Conversion of plain values into the dataclasses of the schema, each checked against its field's type and limits.

Not by pydantic, which could: importing it takes 0.10 and its validators for the schema 0.11 CPU seconds, in `config` and in every stage
that loads the configuration, where this takes 0.015; `config` as a whole takes 0.6. Its messages would have to be rewritten here, too.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from stages.common.errors import ConfigError
from stages.common.messages import nearest, show, unknown
from stages.configuration.schema import (
    MISSING,
)

T = TypeVar("T")


def refused(key: str, value: object, expected: str) -> ConfigError:
    """The error for a value that is not allowed at `key`."""
    return ConfigError(f"{key}: {show(value)} is not allowed; expected {expected}")


def typed(kind: type[T], values: object, key: str = "") -> T:
    """`values` as an instance of the dataclass `kind`, every value checked against its field's type and metadata."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        expected = f"a section with keys among {', '.join(fields)}"
        if isinstance(values, str) and key and "." not in key:
            expected += f" (an option is chosen in the defaults of params.yaml: `- override /{key}: {values}`)"
        raise refused(key, values, expected)
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(unknown(_join(key, name), value, fields))
    hints = typing.get_type_hints(kind)
    converted = {name: _converted(hints[name], values[name], _join(key, name), field) for name, field in fields.items() if name in values}
    for name, field in fields.items():
        if name not in values and field.default == MISSING:
            raise ConfigError(_missing(_join(key, name), field))
    return kind(**converted)


def allowed_values(annotation: Any, field: dataclasses.Field[Any] | None = None) -> str:
    """What a field accepts, in words, e.g. `an integer of at least 1, or null`."""
    metadata = field.metadata if field else {}
    kinds = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    if "choices" in metadata:
        text = f"one of {', '.join(str(choice) for choice in metadata['choices'])}"
    else:
        limits = {"low": "of at least {}", "high": "of at most {}", "above": "above {}", "below": "below {}"}
        words = " and ".join(words.format(metadata[limit]) for limit, words in limits.items() if limit in metadata)
        text = f"{' or '.join(_noun(kind) for kind in kinds)} {words}".strip()
    return text + (", or null" if type(None) in _alternatives(annotation) else "")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _noun(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a section with keys among {', '.join(field.name for field in dataclasses.fields(kind))}"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"a list, each item {_noun(arguments[0])}"
    if origin is dict:
        return "a section" if arguments[1] is Any else f"a section, each value {_noun(arguments[1])}"
    return {str: "text", int: "an integer", float: "a number", bool: "true or false"}.get(kind, "any value")


def _converted(annotation: Any, value: object, key: str, field: dataclasses.Field[Any] | None = None) -> Any:
    """`value` in the type that `annotation` says, checked against the limits of `field`."""
    if isinstance(value, str) and value == MISSING:
        raise ConfigError(_missing(key, field))
    alternatives = _alternatives(annotation)
    if value is None and type(None) in alternatives:
        return None
    kind = next(item for item in alternatives if item is not type(None))
    refusal = refused(key, value, allowed_values(annotation, field))
    if dataclasses.is_dataclass(kind):
        return typed(typing.cast(type[Any], kind), value, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise refusal
        return [_converted(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise refusal
        return {str(name): _converted(arguments[1], item, _join(key, str(name))) for name, item in value.items()}
    if kind is Any:
        _refuse_missing(value, key)
        return value
    if field and "choices" in field.metadata:
        return _choice(value, field.metadata["choices"], key, refusal)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        value = float(typing.cast(float, value))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise refusal
    if isinstance(value, str) and "\0" in value:
        raise refused(key, value, "text without the character NUL")
    if number and not _within(typing.cast(float, value), field.metadata if field else {}):
        raise refusal
    return value


def _choice(value: object, choices: tuple[Any, ...], key: str, refusal: ConfigError) -> Any:
    if isinstance(value, bool):
        # YAML reads an unquoted no/off as false and yes/on as true.
        meant = [choice for choice in choices if choice in (("yes", "on") if value else ("no", "off"))]
        if meant:
            return meant[0]
    if isinstance(value, bool) or value not in choices:
        raise ConfigError(f"{refusal}; {nearest(value, choices)}".rstrip("; "))
    return value


def _within(value: float, limits: Mapping[str, Any]) -> bool:
    if not math.isfinite(value):
        return False
    return (
        value >= limits.get("low", -math.inf)
        and value <= limits.get("high", math.inf)
        and value > limits.get("above", -math.inf)
        and value < limits.get("below", math.inf)
    )


def _refuse_missing(value: object, key: str) -> None:
    """Raise for a `???`, or a text that can be no name or path, anywhere inside a free-form value."""
    if isinstance(value, str) and value == MISSING:
        raise ConfigError(_missing(key))
    if isinstance(value, str) and "\0" in value:
        raise refused(key, value, "text without the character NUL")
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        _refuse_missing(item, _join(key, str(name)))


def _missing(key: str, field: dataclasses.Field[Any] | None = None) -> str:
    meaning = f" ({field.metadata['meaning']})" if field else ""
    return f"{key}: {MISSING} is not allowed; a value must be given{meaning}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)
