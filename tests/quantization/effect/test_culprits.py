"""Planted single culprits: of ten models of different kinds, the layer that suffers is the first in ten."""

from __future__ import annotations

import pytest

from tests.quantization.effect.culprits import KINDS
from tests.quantization.effect.measuring import measured


@pytest.mark.parametrize("kind", KINDS)
def test_the_culprit_comes_first(kind: str) -> None:
    planted = KINDS[kind]()
    found = measured(planted.model, planted.samples, config=planted.config)
    assert len(found.blocks) >= 4
    alone = sorted(found.blocks, key=lambda block: -found.effects.on[block].error)
    assert planted.culprit in alone[0].layers
    assert found.effects.on[alone[0]].error > 2 * found.effects.on[alone[1]].error
    # Without it nearly all of the error is gone; without any other one it stays.
    assert found.effects.quantized is not None
    left = {block: distance.error / found.effects.quantized.error for block, distance in found.effects.off.items()}
    assert min(left, key=lambda block: left[block]) is alone[0]
    assert all(share > 0.7 for block, share in left.items() if block is not alone[0])
