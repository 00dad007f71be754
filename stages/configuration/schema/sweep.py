"""Sweeps."""

from __future__ import annotations

from dataclasses import dataclass

from stages.configuration.schema.fields import param


@dataclass
class Sweep:
    """What a sweep does after its jobs."""

    final_timing: float = param(
        10.0,
        "seconds, at most, in which the best models of all jobs are timed once more, side by side; 0: never",
        low=0.0,
        high=60.0,
    )
