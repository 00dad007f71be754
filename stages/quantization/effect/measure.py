"""What each block does to the model's outputs: with it alone quantized, and with it alone in floating point where all else is quantized.

Noise (`noise`) is what a quantizer does to its own tensor; this is what is left of that at the outputs. The blocks that do most alone
are also left out alone: errors of several blocks may add up to one that no block makes alone, or cancel. For the others that says
nothing: where all is quantized, sums in another order make as much of a difference as a block. Everything is f32 arithmetic with the
quantization written out, so that what is measured is quantization and not a device's kernels (`fidelity` compares these).

What is measured depends on counts alone, never on time: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.common.user_code import user_code
from stages.configuration.schema import Engine
from stages.measurement.fidelity import compile_written_out, differences
from stages.measurement.places import Place, compared
from stages.quantization.effect.blocks import Block
from stages.quantization.effect.switched import CHOICE, NONE, Pair, Switched, switched
from stages.quantization.noise import noise_shares
from stages.runtime import engine
from stages.runtime.datasets import Sample
from stages.runtime.metrics import Metric

GROUP = 10  # blocks that share a compilation, and what runs once per sample
LEFT_OUT = 10  # blocks that are left out alone: one group, so that all are compared within one compilation
FEWEST_SAMPLES = 4
FEWEST_INFERENCES = 400
PER_SAMPLE = 4  # inferences per validation sample, of half a model on average: as much as the metrics of two models take
HIGHEST = 1e6  # relative errors are cut off here: a model may end in infinities
MEMORY = 1_000_000_000  # bytes of FP32 outputs that are kept: where outputs are large there are fewer samples

Outputs = list[NDArray[Any]]


class Distance(NamedTuple):
    """How far a model is from FP32.

    Attributes:
        error: Relative error of the outputs, as the metric `ReferenceError` has it: mean over samples.
        agreement: What the primary metric says of it with FP32's predictions as targets, as a share of what it says so of FP32 itself:
            mean over samples; None where it cannot.
    """

    error: float
    agreement: float | None


class Effects(NamedTuple):
    """What was measured.

    Attributes:
        samples: On how many samples.
        on: With a block alone quantized.
        off: With all but a block quantized, of those that do most alone.
        quantized: With all quantized; None where no `off` was measured.
        reason: Why blocks that are missing in `on` were not measured; empty where none is.
    """

    samples: int = 0
    on: Mapping[Block, Distance] = {}
    off: Mapping[Block, Distance] = {}
    quantized: Distance | None = None
    reason: str = ""

    def columns(self, blocks: Iterable[Block]) -> dict[str, dict[str, Any]]:
        """By layer, what the table of layers says of its block."""
        return {layer: self._of_block(block) for block in blocks for layer in block.layers}

    def _of_block(self, block: Block) -> dict[str, Any]:
        alone, left_out = self.on.get(block), self.off.get(block)
        result: dict[str, Any] = {"block": block.name if len(block.layers) > 1 else None}
        if alone is None:
            return result | {"effect_missing": self.reason or None}
        result |= {"effect_on": alone.error, "agreement_on": alone.agreement}
        if left_out is None or self.quantized is None:
            return result
        gain = float(f"{self.quantized.error - left_out.error:.3g}")
        return result | {"effect_off": gain, "agreement_off": left_out.agreement}

    def summary(self, blocks: Sequence[Block]) -> dict[str, Any]:
        """What evaluation.json says of the measurement as a whole."""
        numbers = {"samples": self.samples, "blocks": len(blocks), "alone": len(self.on), "left_out": len(self.off)}
        return numbers | {"missing": self.reason or None, "quantized": None if self.quantized is None else self.quantized._asdict()}


class Counts(NamedTuple):
    """How much is measured: samples, blocks that are quantized alone, and blocks that are left out alone."""

    samples: int
    on: int
    off: int


def counts(blocks: int, samples: int, inferences: int) -> Counts:
    """What can be done with a number of inferences: fewer samples first, then fewer blocks left out, then fewer quantized."""
    if not blocks or not samples:
        return Counts(0, 0, 0)
    most = min(blocks, LEFT_OUT)
    used = min(samples, max(FEWEST_SAMPLES, inferences // (blocks + most)))
    models = inferences // used
    return Counts(used, min(blocks, models), min(most, max(0, models - blocks)))


def allowed_inferences(configured: int | None, validation_samples: int) -> int:
    """`evaluate.effect_inferences`, or what it stands for where it is null."""
    return max(FEWEST_INFERENCES, PER_SAMPLE * validation_samples) if configured is None else configured


def noise_of(blocks: Iterable[Block], ratios: Mapping[str, float | None]) -> dict[Block, float]:
    """Noise power over signal power, summed over a block's quantizers. ratios: SQNR in dB by quantizer."""
    return summed(blocks, noise_shares(ratios))


def summed(blocks: Iterable[Block], shares: Mapping[str, float]) -> dict[Block, float]:
    """What is known by quantizer, summed over a block's quantizers."""
    return {block: sum(shares.get(name, 0.0) for name in block.quantizers) for block in blocks}


def telling(losses: NDArray[np.float64], count: int) -> list[int]:
    """Positions of samples: in turns one that loses most by quantization, as far as there are any that lose, and the first of all others.

    On samples that are easy for the model hardly anything that a layer does shows.

    Args:
        losses: [N], by how much each sample's score falls.
        count: How many are wanted.
    """
    hard = [int(position) for position in np.argsort(-losses, kind="stable") if losses[position] > 0][: count // 2]
    others = [position for position in range(len(losses)) if position not in set(hard)]
    pairs = [position for pair in zip(hard, others, strict=False) for position in pair]
    return [*pairs, *hard[len(others) :], *others[len(hard) :]][:count]


def measure(
    pair: Pair,
    blocks: Sequence[Block],
    noise: Mapping[Block, float],
    metric: Metric | None,
    samples: Sequence[Sample],
    settings: Engine,
    inferences: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Effects:
    """Run the models.

    Args:
        pair: The model, quantized and not.
        blocks: In the order in which they are computed.
        noise: Of each block; where not all can be measured the noisiest are quantized alone, and of these the most harmful left out.
        metric: The primary one, bound to the model.
        samples: Bound to the model.
        settings: What it runs on.
        inferences: How many of the part of the model behind a block may be run.
        advance: Is called with the number of inferences that are done.
    """
    if pair.floating.get_sinks():
        return Effects(reason="the model keeps a state")
    places = compared(pair.floating)
    if not places:
        return Effects(reason="no output can be compared")
    few = counts(len(blocks), len(samples), inferences)
    noisiest = sorted(blocks, key=lambda block: -noise.get(block, 0.0))[: few.on]
    try:
        runs = _Runs(pair, places, metric, list(samples[: few.samples]), settings, advance)
        on = runs.distances([block for block in blocks if block in set(noisiest)], quantized=False)
        worst = sorted(noisiest, key=lambda block: -on[block].error)[: few.off]
        off = runs.distances([block for block in blocks if block in set(worst)], quantized=True)
    except (UserError, RuntimeError) as error:
        return Effects(reason=f"it could not be computed: {engine.last_line(error)}")
    reason = f"{inferences} inferences (evaluate.effect_inferences) are used up" if few.on < len(blocks) else ""
    return Effects(len(runs.samples), on, off, runs.base.get(True), reason)


class _Runs:
    """Runs of models in which one block differs from the others."""

    def __init__(
        self,
        pair: Pair,
        places: Sequence[Place],
        metric: Metric | None,
        samples: list[Sample],
        settings: Engine,
        advance: Callable[[int], None],
    ) -> None:
        self.pair, self.places, self.metric, self.samples, self.settings, self.advance = pair, places, metric, samples, settings, advance
        self.base: dict[bool, Distance] = {}  # of the models in which no block differs: with none (False) and with all quantized
        self.references: list[Outputs] = []  # by sample, what FP32 gives
        self.own: list[float | None] = []  # by sample, how far FP32 agrees with itself: detections may be fewer than 1 of all that count

    def distances(self, blocks: Sequence[Block], *, quantized: bool) -> dict[Block, Distance]:
        """Of the models in which one of `blocks` is quantized, or, where all are, is not; and of that in which none differs."""
        found: dict[Block, Distance] = {}
        for group in (blocks[first : first + GROUP] for first in range(0, len(blocks), GROUP)):
            choices = [*([] if quantized in self.base else [NONE]), *range(len(group))]
            for choice, distance in self._group(group, choices, quantized=quantized).items():
                if choice == NONE:
                    self.base[quantized] = distance
                else:
                    found[group[choice]] = distance
        return found

    def _group(self, group: Sequence[Block], choices: Sequence[int], *, quantized: bool) -> dict[int, Distance]:
        parts = switched(self.pair, group, self.places, quantized=quantized)
        sums = {choice: _Sums(self.pair.floating, self.places) for choice in choices}
        for index, by_choice in enumerate(_outputs(parts, self.samples, choices, self.settings)):
            for choice, outputs in zip(choices, by_choice, strict=True):
                if not quantized and choice == NONE:
                    self._remember(outputs)
                    self.own.append(self._agreement(outputs, outputs))
                own = self.own[index]
                agreement = self._agreement(outputs, self.references[index]) if own else None
                sums[choice].add(outputs, self.references[index], None if agreement is None or not own else agreement / own)
                self.advance(1)
            if index + 1 == len(self.samples):
                break
        return {choice: one.distance() for choice, one in sums.items()}

    def _remember(self, outputs: Outputs) -> None:
        self.references.append([output.copy() for output in outputs])
        if len(self.references) == 1:
            self.samples = self.samples[: max(1, MEMORY // max(1, sum(output.nbytes for output in outputs)))]

    def _agreement(self, outputs: Outputs, reference: Outputs) -> float | None:
        if self.metric is None:
            return None
        count = len(self.pair.floating.outputs)
        with user_code(f"agreement of {type(self.metric).__name__}"):
            return self.metric.agreement(outputs[:count], reference[:count])


def _outputs(parts: Switched, samples: Sequence[Sample], choices: Sequence[int], settings: Engine) -> Iterator[Iterator[Outputs]]:
    """By sample and choice, the outputs of the model, then those at places that are none."""
    before, after = (compile_written_out(model, settings, "f32", "THROUGHPUT") for model in (parts.before, parts.after))
    runner = engine.Runner(after)

    def of_sample(fixed: Outputs) -> Iterator[Outputs]:
        carried = {str(index): value for index, value in enumerate(fixed[: parts.crossing])}
        for outputs in runner.infer(Sample({**carried, CHOICE: np.array(choice, np.int32)}) for choice in choices):
            yield [outputs[index] if later else fixed[parts.crossing + index] for later, index in parts.outputs]

    for outputs in engine.infer(before, samples, 1):
        yield of_sample([output.copy() for output in outputs])


class _Sums:
    """What is summed up over samples of how far a model's outputs are from FP32's."""

    def __init__(self, model: ov.Model, places: Sequence[Place]) -> None:
        own, others = len(model.outputs), iter(range(len(places)))
        self.indices = [place.output if place.output is not None else own + next(others) for place in places]
        self.errors: list[float] = []
        self.agreements: list[float | None] = []

    def add(self, outputs: Outputs, reference: Outputs, agreement: float | None) -> None:
        self.errors.append(relative_error(*([tensors[index] for index in self.indices] for tensors in (outputs, reference))))
        self.agreements.append(agreement)

    def distance(self) -> Distance:
        known = [value for value in self.agreements if value is not None and np.isfinite(value)]
        return Distance(float(f"{np.mean(self.errors):.3g}"), round(float(np.mean(known)), 4) if known else None)


def relative_error(outputs: Outputs, reference: Outputs) -> float:
    """|ours - theirs| / |theirs| in the L2 norm (|ours| where theirs is all zero); of several outputs the mean. See `HIGHEST`."""
    error = np.sqrt(differences(outputs, reference))
    signal = np.sqrt(differences(reference, [np.zeros_like(tensor) for tensor in reference]))
    return float(np.mean(np.minimum(error / np.where(signal > 0, signal, 1.0), HIGHEST)))
