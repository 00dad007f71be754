"""Models quantized from samples, and what their blocks do to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov

from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.effect.blocks import Block, blocks_of
from stages.quantization.effect.measure import Effects, measure
from stages.quantization.effect.switched import Pair
from stages.quantization.model.graph import read_graph
from stages.quantization.noise import aligned_model
from stages.quantization.placement.plan import Plan
from stages.quantization.statistics.store import Statistics
from stages.runtime.datasets import Sample
from stages.runtime.metrics import Metric
from tests.quantization.quantizing import plan_of, statistics_of

CORRECTION = schema.BiasCorrection()


class Made(NamedTuple):
    """A model, quantized and not."""

    statistics: Statistics
    plan: Plan
    pair: Pair
    blocks: tuple[Block, ...]


class Measured(NamedTuple):
    """Blocks, and what they do."""

    blocks: tuple[Block, ...]
    effects: Effects


def made(tested: ov.Model, samples: Sequence[Any], **config: Any) -> Made:
    """The default quantization, biases corrected."""
    statistics = statistics_of(tested, samples, pot_compatible=False)
    plan = plan_of(tested, statistics=statistics, **config)
    pair = Pair(build(tested, statistics, plan, CORRECTION)[0], aligned_model(tested, statistics, plan), plan)
    return Made(statistics, plan, pair, blocks_of(read_graph(tested), plan, "activations_and_weights"))


def inputs(samples: Sequence[np.ndarray]) -> list[Sample]:
    return [Sample({"x": sample}) for sample in samples]


def measured(
    tested: ov.Model, samples: Sequence[np.ndarray], metric: Metric | None = None, inferences: int = 10_000, **more: Any
) -> Measured:
    """What every block does."""
    result = made(tested, samples, **more.get("config", {}))
    effects = measure(result.pair, result.blocks, more.get("noise", {}), metric, inputs(samples), schema.Engine(), inferences)
    return Measured(result.blocks, effects)
