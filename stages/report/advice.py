"""What to do next, from what was measured: facts in, a list of advice with the command to copy out."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stages.common.units import amount, difference, ratio
from stages.report.choice import Candidate, Loss

SWEEP = "python -m stages.sweep -m"
PACKAGE = "python -m stages.package"  # takes the model to deploy by itself
WIDTH = 132
INDENT = " " * len("next: ")
BUDGET = " (accuracy_aware.maximal_drop)"
MOSTLY = 0.5  # of a drop: the share from which on it is the default precision's


@dataclass(frozen=True)
class Advice:
    """What to do and why in a sentence, and the command that does it; empty where none can."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Facts:
    """What was measured of a result, as far as it tells what to do.

    Attributes:
        model: The quantized model to deploy.
        path: Of its model.xml.
        default: The device's default precision.
        smaller: How many times smaller than FP32's its files are.
        preset: Of the quantization.
        budget: Whether accuracy_aware is on, and holds; None where it is off.
        tuned: Whether tune is on.
        at_chance: Whether FP32 itself is no better than guessing.
        saturates: Whether sums of 16 bits saturate in the model.
        saturation_fix: As the configuration has it.
        faulty_layer: The first layer at which the device computes something else than the model says, for another reason; else None.
        one_shape: By input, the shape that all samples have although the model leaves it open.
        shape_operations: By type, how many operations that is known to cost.
    """

    model: Candidate
    path: str
    default: str
    smaller: float
    preset: str
    budget: bool | None
    tuned: bool
    at_chance: bool
    saturates: bool
    saturation_fix: str
    faulty_layer: str | None
    one_shape: Mapping[str, Sequence[int]]
    shape_operations: Mapping[str, int]


def advice(facts: Facts) -> list[Advice]:
    """What to do next, the most important first."""
    if facts.at_chance:
        return [Advice("make FP32's own number right before anything else: it is that of guessing, and a drop from there says nothing")]
    return [*_deploy(facts), *_faults(facts), *_remedies(facts), *_samples(facts.model.losses), *_shapes(facts)]


def _deploy(facts: Facts) -> Iterator[Advice]:
    """Deploy this, or not yet, or FP32."""
    model, fp32 = facts.model, f"FP32 in {facts.default}"
    known = [loss for loss in model.losses if loss.allowed is not None] or model.losses
    lost = "; ".join(_judged(loss) for loss in known)
    speed = "speed was not measured" if model.ratio is None else ratio(model.ratio, fp32)
    if not model.faster:
        search = "" if facts.tuned else ", or let `tune` look for a faster model"
        lossy = "".join(f", and {loss.shown()}" for loss in model.losses if not loss.acceptable)
        text = f"ship FP32 in {facts.default}, build/prepare/model.xml{search}: {model.name} is {speed} here{lossy}"
        if facts.smaller > 1 and model.acceptable:
            text += f"; it is worth its {facts.smaller:.1f}x smaller files only where those count"
        yield Advice(text, "" if facts.tuned else f"{SWEEP} tune.enabled=true")
    elif not model.acceptable:
        beyond = "; ".join(_excess(loss) for loss in model.losses if not loss.acceptable)
        yield Advice(f"do not deploy {model.name} yet: {beyond or 'the device does not compute what it says'}{BUDGET if beyond else ''}")
    elif all(loss.allowed is None for loss in known):
        yield Advice(
            f"{model.name} is {speed}; whether {lost} hurts, no label says: measure it with labelled samples (`data`, `metric`),"
            " or name the metric with what it may lose in accuracy_aware.metrics"
        )
    else:
        yield Advice(f"deploy {facts.path}: {speed}; {lost}", PACKAGE)


def _judged(loss: Loss) -> str:
    """A drop beside what is allowed."""
    if loss.allowed is None:
        return loss.shown()
    if loss.within:
        return f"{loss.shown()}, {difference(loss.metric, loss.allowed)} allowed"
    if not loss.clear:
        return f"{loss.shown()}, which {loss.samples} samples cannot tell from none"
    return f"{loss.shown()}, {difference(loss.metric, loss.allowed)} allowed, which holds on the samples of the search"


def _excess(loss: Loss) -> str:
    return f"{loss.shown()}, {difference(loss.metric, loss.allowed or 0.0)} allowed"


def _faults(facts: Facts) -> Iterator[Advice]:
    """The device does not compute what the model says."""
    if facts.saturates and facts.saturation_fix != "all":
        yield Advice(
            "halve the weights of all layers: this device adds products of 8 bits up in 16 bits, and they saturate",
            f"{SWEEP} quantization.saturation_fix={facts.saturation_fix},all",
        )
    elif facts.saturates:
        yield Advice(
            "use a device with VNNI, or leave products of two activations in floating point: sums saturate although"
            " quantization.saturation_fix is all"
        )
    elif facts.faulty_layer is not None:
        yield Advice(
            f"leave {facts.faulty_layer} in floating point: there the device does not compute what the model says",
            f"{SWEEP} {shlex.quote(f'quantization.ignored.scope=[{json.dumps(facts.faulty_layer)}]')}",
        )


def _remedies(facts: Facts) -> Iterator[Advice]:
    """What may bring lost accuracy back, where more is lost than allowed."""
    beyond = [loss for loss in facts.model.losses if not loss.acceptable]
    if not beyond or facts.model.acceptable or not facts.model.faster:
        return
    if (mostly := next((loss for loss in beyond if _of_the_precision(loss)), None)) is not None:
        part = mostly.metric["precision_drop"]
        yield Advice(
            f"compute in f32 what stays float: {difference(mostly.metric, part)} of the {amount(mostly.metric, mostly.drop)} of"
            f" {mostly.name} are {facts.default}'s and not quantization's; that costs speed",
            f"{SWEEP} engine.inference_precision=default,f32",
        )
    if facts.preset == "performance":
        yield Advice(
            "try preset `mixed`: asymmetric activations lose less, often at the same speed",
            f"{SWEEP} quantization.preset=performance,mixed",
        )
    if facts.budget is None:
        yield Advice("give the layers that hurt back to floating point until the budget holds", f"{SWEEP} accuracy_aware.enabled=true")
    elif not facts.budget:
        yield Advice(
            "allow more, or calibrate on more and other samples: no reversion of layers keeps this budget (accuracy_aware.maximal_drop,"
            " data.calibration)"
        )


def _of_the_precision(loss: Loss) -> bool:
    """Whether most of a drop comes from the default precision, beyond doubt."""
    low = loss.metric.get("precision_drop_low")
    return low is not None and low > 0.0 and loss.metric["precision_drop"] >= MOSTLY * loss.drop


def _samples(losses: Sequence[Loss]) -> Iterator[Advice]:
    """Too few validation samples: the metric that needs most of them."""
    unclear = max((loss for loss in losses if loss.undecided), key=lambda loss: loss.samples_needed, default=None)
    if unclear is None or unclear.bounds is None or unclear.samples_needed <= unclear.samples:
        return
    low, high = (difference(unclear.metric, side) for side in unclear.bounds)
    yield Advice(
        f"validate on more samples, about {unclear.samples_needed}: {unclear.samples} cannot tell whether {unclear.name} keeps the budget"
        f" of {amount(unclear.metric, unclear.allowed or 0.0)}, as its drop lies anywhere in [{low}, {high}] (data.validation,"
        " data.validation_size)"
    )


def _shapes(facts: Facts) -> Iterator[Advice]:
    """Sizes that are left open and never change."""
    if not facts.one_shape:
        return
    counts = [f"{count} {name}" for name, count in facts.shape_operations.items() if count]
    cost = f"which costs {' and '.join(counts)} operations" if counts else "which often makes models slower and larger"
    shapes = ", ".join(f"{_key(name)}: {list(shape)}" for name, shape in facts.one_shape.items())
    yield Advice(
        f"fix the model's shape: all samples have one, and the model leaves it open, {cost} (model.input_shape)",
        f"{SWEEP} {shlex.quote(f'model.input_shape={{{shapes}}}')}",
    )


def _key(name: str) -> str:
    """A name as a key in an override's dictionary: Hydra takes no quotes there."""
    return re.sub(r"([\\()\[\]{}:=,\s\"'])", r"\\\1", name)


def lines(steps: Sequence[Advice]) -> list[str]:
    """For a terminal: each with its command below it, which is never broken."""
    found = []
    for step in steps:
        found += textwrap.wrap(step.text, WIDTH, initial_indent="next: ", subsequent_indent=INDENT, break_on_hyphens=False)
        found += [f"{INDENT}{step.command}"] if step.command else []
    return found
