"""Fields of the configuration, with their meaning and what they allow."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MISSING = "???"  # omegaconf's marker for "must be given"


def param(
    default: Any,
    meaning: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its meaning and what it allows: choices, or a range (low/high inclusive, above/below not)."""
    allowed = {"choices": choices, "low": low, "high": high, "above": above, "below": below}
    metadata = {"meaning": meaning, **{key: value for key, value in allowed.items() if value is not None}}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
