"""Candidates with blocks returned to floating point."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stages.quantization.effect.blocks import Block
from stages.search.candidates import Candidate, corrections_of_quantized, without

REASON = "reverted to keep the accuracy budget"


def reverted(base: Candidate, blocks: Iterable[Block]) -> Candidate:
    """`base` without the quantizers of `blocks`. Biases return with the weights: only quantized weights need a correction."""
    names = {name for block in blocks for name in block.quantizers}
    if not names:
        return base
    plan = without(base.plan, names, REASON)
    return replace(base, plan=plan, corrections=corrections_of_quantized(base.corrections, plan, base.bias_correction.apply_for_all_nodes))
