"""How values, keys and suggestions read in messages about the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stages.common.passwords import without_passwords


def show(value: object) -> str:
    """A value as one would write it in YAML, cut to a readable length, without passwords in addresses."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = without_passwords(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: object, allowed: Iterable[object]) -> str:
    """`did you mean 'x'? ` when something in `allowed` is close to `name`, otherwise nothing."""
    names = [str(item) for item in allowed]
    close = difflib.get_close_matches(str(name), names, n=1) or [item for item in names if name and item.startswith(str(name))]
    return f"did you mean '{close[0]}'? " if close else ""


def unknown(key: str, value: object, allowed: Iterable[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    section, _, name = key.rpartition(".")
    names = list(allowed)
    place = f"the keys of {section}" if section else "the sections"
    return f"{key}: unknown key (value {show(value)}); {nearest(name, names)}{place} are {', '.join(names) or 'none'}"


def listed(words: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
