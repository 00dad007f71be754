"""Models that the accuracy-aware search has tried, and its trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.quantization.effect.blocks import Block
from stages.search.candidates import Candidate
from stages.search.evaluator import Rows

BASE, MIXED, HYPERPARAMETERS, REVERT, REQUANTIZE = "base", "mixed preset", "hyperparameters", "revert", "re-quantize"
KEEPS, BETTER, NO_WORSE, EXCEEDS = "keeps the budget", "better", "no worse", "exceeds the budget"
UNSURE = "keeps the budget, but not for sure"
CEILING, TOO_FEW = "noisiest half", "not sure of the budget even so: that takes more samples"
WORSE_KEPT = "worse: kept, as use_prev_if_drop_increase is false"
WORSE, USELESS, NEEDED = "worse: undone", "no better than before: not taken", "breaks the budget: undone"


@dataclass(frozen=True)
class State:
    """A model that was evaluated on all search samples."""

    candidate: Candidate
    rows: Rows  # by sample, in the order of `Reversion.positions`
    excess: float
    blocks: tuple[Block, ...] = ()  # that are reverted, in the order in which they were

    @property
    def holds(self) -> bool:
        """Whether it keeps the budget."""
        return self.excess <= 0

    @property
    def cost(self) -> float:
        """Multiplications that returned to floating point."""
        return sum(block.cost for block in self.blocks)

    @property
    def layers(self) -> tuple[str, ...]:
        """Operations that returned to floating point."""
        return tuple(layer for block in self.blocks for layer in block.layers)

    def everywhere(self, positions: Sequence[int], others: Sequence[int], rows: Rows | None) -> Rows:
        """Its rows on all validation samples: its own at `positions`, and `rows` at `others`."""
        if rows is None:
            return self.rows
        places = np.argsort([*positions, *others])
        return {name: np.concatenate([values, rows[name]])[places] for name, values in self.rows.items()}


@dataclass(frozen=True)
class Step:
    """One line of the trace: a model that was tried.

    Attributes:
        iteration: Counts the lines.
        phase: What was tried: base, mixed preset, hyperparameters, revert, re-quantize.
        layers: The operations that the step reverted, or quantized again.
        reverted: How many operations are reverted in this model.
        drops: By metric, on the search samples; none where the evaluation was given up early.
        accepted: Whether the search goes on from here.
        why: The reason for that.
    """

    iteration: int
    phase: str
    layers: tuple[str, ...]
    reverted: int
    drops: dict[str, float] | None
    accepted: bool
    why: str


def layers_of(blocks: Iterable[Block]) -> tuple[str, ...]:
    return tuple(layer for block in blocks for layer in block.layers)
