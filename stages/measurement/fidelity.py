"""Whether the compiled INT8 model computes what the quantized model says.

A quantized model says by its FakeQuantizes what is to be rounded to which levels. The device is free to compute that on integers, and its
kernels have faults: some compute something else, some of them only in some compilations. Here the compiled model runs beside the same
model with its quantization written out in plain f32 arithmetic (`written_out`), and the two are compared at the outputs and, with the
quantized tensors as further outputs, at every quantizer.

They are never equal: sums in another order differ in the last bit, and where that moves a value to the next level, everything behind it
differs, in a deep model by as much as quantization itself makes. How much is measured, not guessed: the written-out model runs again with
everything that it rounds shifted by a twentieth of a level up, then down, which sends one value in twenty to the next level. Differences
up to `LIMIT` times of what that makes (root of the sum of squares) are explained by rounding. Where the INT8 model runs in bf16, so is
what bf16 does to the written-out model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration.schema import Engine
from stages.measurement.latency import precision_of
from stages.measurement.places import WEIGHTED, Place, compared, ending_at, with_outputs
from stages.measurement.written_out import written_out
from stages.runtime import engine
from stages.runtime.datasets import Sample

SHIFT = 0.05  # levels
LIMIT = 2.0  # healthy models stay below 1, faults begin at 3 (tests/benchmarks/kernel_faults.py)
HIGHEST = 1e6  # ratios are cut off here: of something to nothing there is none
SMALLEST_SHARE = 1e-4  # of a tensor's root mean square: what f32 arithmetic in another order may change
SMALLEST = 1e-9
FEW = 3  # so many of a tensor's values may be on the next level although none was in the shifted runs
COMPILATIONS = {"LATENCY": 1, "THROUGHPUT": 2}
SEEN_WITH = "THROUGHPUT"  # hint of one more, with the quantized tensors as outputs: the one with more faults

Squares = NDArray[np.float64]
Outputs = Sequence[NDArray[Any]]


class Compilation(NamedTuple):
    """How far one compilation is from what the model says: by place, how many times what rounding explains."""

    hint: str
    instrumented: bool
    places: Sequence[Place]
    ratios: NDArray[np.float64]

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return float(np.max(self.ratios, initial=0.0))

    @property
    def first(self) -> Place | None:
        """The first place that rounding does not explain."""
        beyond = np.flatnonzero(self.ratios > LIMIT)
        return self.places[beyond[0]] if len(beyond) else None


# ------------------------------------------------------------------------------------------------------------ the check


def check(
    model: ov.Model, settings: Engine, samples: Sequence[Sample], precision: str, ready: Mapping[str, ov.CompiledModel] | None = None
) -> dict[str, Any]:
    """Compare the compiled model with what it says.

    Args:
        model: The INT8 model, as it is stored.
        settings: What it runs on.
        samples: Inputs, bound to the model; a few are enough.
        precision: The precision that it runs in.
        ready: By hint, a compilation that there is already, to be checked in place of a new one.

    Returns:
        What evaluation.json holds under `fidelity`: see `finding`; `saturates`; and `warning`, a sentence where they part. Where the model
        compiles but not what it is compared with, only `skipped`, the reason, and a warning of that.

    Raises:
        UserError: the device cannot run the model.
    """
    try:
        result = _check(model, settings, samples, precision, ready or {})
    except UserError as error:
        engine.compile(model, settings, precision)
        return {"skipped": str(error), "warning": f"whether INT8 computes what it says was not checked: {error}"}
    return result | {"saturates": saturates(result, settings), "warning": warning(result, settings)}


def _check(
    model: ov.Model, settings: Engine, samples: Sequence[Sample], precision: str, ready: Mapping[str, ov.CompiledModel]
) -> dict[str, Any]:
    places = compared(model)
    numbered = [index for index, place in enumerate(places) if place.output is not None]
    outputs = [places[index] for index in numbered]
    compilations: list[Compilation] = []
    runs_in = precision
    if places:
        seen = with_outputs(model, places)
        measured = _compare(model, settings, samples, places, [engine.compile(seen, settings, precision, hint=SEEN_WITH)])
        compilations.append(Compilation(SEEN_WITH, True, places, measured.ratios()[0]))
        runs_in = measured.precision
        del seen
    for hint in (hint for hint, count in COMPILATIONS.items() for _ in range(count if outputs else 0)):
        there = ready.get(hint) if all(entry.instrumented or entry.hint != hint for entry in compilations) else None
        compiled = there or engine.compile(model, settings, precision, hint=hint)
        runs = zip(engine.infer(compiled, samples, 1), measured.references, strict=True)
        squares = np.sum([differences(_at(outputs, given), reference) for given, reference in runs], axis=0)
        compilations.append(Compilation(hint, False, outputs, ratios_of(squares, measured.explained[numbered])))
    first = _first(model, settings, samples, precision, places, compilations)
    return finding(compilations, first, len(samples), runs_in, len(model.outputs) - len(outputs))


def _first(
    model: ov.Model,
    settings: Engine,
    samples: Sequence[Sample],
    precision: str,
    places: Sequence[Place],
    compilations: Sequence[Compilation],
) -> Place | None:
    """The first place at which some compilation parts from what the model says.

    Where that shows at the outputs alone, and no more when quantized tensors are outputs, too, since the kernels then are others: the
    first place up to which the model parts if it ends there.
    """
    parted = [entry for entry in compilations if entry.first is not None]
    seen = [places.index(entry.first) for entry in parted if entry.instrumented and entry.first is not None]
    if seen or not parted:
        return places[min(seen)] if seen else None
    hint, last = parted[0].hint, parted[0].first

    def parts_at(place: Place) -> bool:
        ending = ending_at(model, place)
        compiled = [engine.compile(ending, settings, precision, hint=hint) for _ in range(1 + COMPILATIONS[hint])]
        ratios = _compare(ending, settings, samples, [place._replace(output=0, reader=None)], compiled).ratios()
        return any(ratio[0] > LIMIT for ratio in ratios)

    low, high = 0, places.index(last) if last is not None else 0
    while low < high and not model.get_sinks():  # no state without what sets it
        middle = (low + high) // 2
        low, high = (low, middle) if parts_at(places[middle]) else (middle + 1, high)
    return places[high]


class Measured(NamedTuple):
    """How compiled models differ at places from what the model says: sums of squares over all samples.

    Attributes:
        squares: By compiled model the differences.
        explained: What rounding, and the precision, explain.
        references: By sample, the model's outputs as the written-out model computes them.
        precision: That of the compiled models, where they are not quantized.
    """

    squares: list[Squares]
    explained: Squares
    references: list[list[NDArray[Any]]]
    precision: str

    def ratios(self) -> list[NDArray[np.float64]]:
        """By compiled model and place: how many times more than what is explained."""
        return [ratios_of(squares, self.explained) for squares in self.squares]


def _compare(
    model: ov.Model, settings: Engine, samples: Sequence[Sample], places: Sequence[Place], compiled: Sequence[ov.CompiledModel]
) -> Measured:
    """Run compiled models, which have the places as outputs, beside the written-out `model`."""
    precision = precision_of(compiled[0])
    runs = [engine.infer(one, samples, 1) for one in compiled]
    result = Measured([np.zeros(len(places)) for _ in runs], np.array([FEW * place.step**2 for place in places]), [], precision)
    for reference, explained in _references(model, settings, samples, places, precision):
        result.explained[:] += explained
        result.references.append([tensor.copy() for tensor, place in zip(reference, places, strict=True) if place.output is not None])
        for squares, run in zip(result.squares, runs, strict=True):
            squares += differences(_at(places, next(run)), reference)
    return result


def _references(
    model: ov.Model, settings: Engine, samples: Sequence[Sample], places: Sequence[Place], precision: str
) -> Iterator[tuple[Outputs, Squares]]:
    """By sample: what the written-out model computes at the places, and how large squared differences from it are explained."""
    shift = op.parameter([], np.float32, name="shift")
    exact = compile_written_out(with_outputs(written_out(model, shift), places), settings, "f32")
    shifts = [np.array(value, np.float32) for value in (0.0, SHIFT, -SHIFT)]
    # A request each: they may have a state.
    runs = [engine.infer(exact, [sample.with_input("shift", value) for sample in samples], 1) for value in shifts]
    rough = None
    if precision != "f32":
        rough = engine.infer(compile_written_out(with_outputs(written_out(model), places), settings, precision), samples, 1)
    for _ in samples:
        reference, *shifted = (_at(places, next(run)) for run in runs)
        explained = np.max([differences(outputs, reference) for outputs in shifted], axis=0)
        if rough is not None:
            explained = explained + differences(_at(places, next(rough)), reference)
        yield reference, explained + np.array([_smallest(tensor) for tensor in reference])


def compile_written_out(written: ov.Model, settings: Engine, precision: str, hint: str = "LATENCY") -> ov.CompiledModel:
    """Compile a written-out model."""
    try:
        return engine.compile(written, settings, precision, hint=hint)
    except UserError:
        # Of a long chain of element-wise operations the CPU makes one kernel, which may need more registers than there are.
        return engine.compile(written, settings, precision, hint=hint, more={"SNIPPETS_MODE": "DISABLE"})


def differences(ours: Outputs, reference: Outputs) -> Squares:
    """By tensor the sum of squared differences; infinite where it has another shape, or no number where the reference has one."""
    pairs = zip(ours, reference, strict=True)
    return np.array([_sum_of_squares(one, other) if one.shape == other.shape else np.inf for one, other in pairs])


def _sum_of_squares(one: NDArray[Any], other: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.subtract(one, other, dtype=np.float32).ravel()
        total = float(distance @ distance)
    if np.isfinite(total):
        return total
    usable = np.isfinite(other)
    exact = one[usable].astype(np.float64) - other[usable]
    return float(exact @ exact) if np.isfinite(exact).all() else np.inf


def _smallest(reference: NDArray[Any]) -> float:
    """What f32 arithmetic may change in a tensor although nothing is rounded to levels before it."""
    zeros = np.broadcast_to(np.float32(0), reference.shape)
    return SMALLEST_SHARE**2 * _sum_of_squares(np.where(np.isfinite(reference), reference, 0), zeros) + SMALLEST**2 * reference.size


def ratios_of(squares: Squares, explained: Squares) -> NDArray[np.float64]:
    """Root of what is over what is explained; 0 of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.minimum(np.sqrt(squares / explained), HIGHEST))


def _at(places: Sequence[Place], outputs: Outputs) -> Outputs:
    """Of the outputs of a model, with the places as further outputs or without, those at the places."""
    added = iter(outputs[len(outputs) - sum(place.reader is not None for place in places) :])
    return [next(added) if place.output is None else outputs[place.output] for place in places]


# ------------------------------------------------------------------------------------------------------------ what is told


def finding(compilations: Sequence[Compilation], first: Place | None, samples: int, precision: str, uncompared: int) -> dict[str, Any]:
    """The result as plain data, without `warning`.

    samples: how many were compared.
    precision: that of the INT8 model.
    limit: the ratio up to which rounding explains a difference.
    ratio: the largest of all compilations.
    compilations: by compilation its hint, whether quantized tensors were outputs, and its largest ratio.
    first: the first layer at which they part, its type, and the tensor that differs; null where they do not.
    uncompared: how many outputs cannot be compared, as they are no floating-point numbers or in an order that the last bit decides.
    """
    return {
        "samples": samples,
        "precision": precision,
        "limit": LIMIT,
        "ratio": _rounded(max((entry.worst for entry in compilations), default=0.0)),
        "compilations": [
            {"hint": entry.hint, "instrumented": entry.instrumented, "ratio": _rounded(entry.worst)} for entry in compilations
        ],
        "first": first and {"layer": first.layer, "type": first.kind, "tensor": first.tensor},
        "uncompared": uncompared,
    }


def parts(result: Mapping[str, Any]) -> bool:
    """Whether the compiled model computes something else than it says."""
    return bool(result["ratio"] > result["limit"])


def saturates(result: Mapping[str, Any], settings: Engine) -> bool:
    """Whether the model parts from what it says where the device adds up in 16 bits: halved weights may help."""
    first = result["first"]
    return parts(result) and first is not None and first["type"] in WEIGHTED and sums_saturate(settings.device)


def warning(result: Mapping[str, Any], settings: Engine) -> str | None:
    """What a user must know of a model that parts from what it says, and what may help; None where it does not."""
    if not parts(result):
        return None
    first, outputs = result["first"], [entry for entry in result["compilations"] if not entry["instrumented"]]
    beyond = [entry for entry in outputs if entry["ratio"] > result["limit"]]
    where = f"from {first['type']} {first['layer']} on" if first is not None else "somewhere"
    hints = " and ".join(dict.fromkeys(entry["hint"] for entry in beyond))
    seen = f"at the outputs in {len(beyond)} of {len(outputs)} compilations, hint {hints}" if beyond else "though no more at the outputs"
    text = (
        f"{settings.device} does not compute what the INT8 model says: {where} it differs by {result['ratio']:g} times what rounding"
        f" explains, {seen}"
    )
    if saturates(result, settings):
        return (
            f"{text}. It adds products of 8 bits up in 16 bits, which saturate: set quantization.saturation_fix to all, leave products"
            " of two activations in floating point, or use a CPU with VNNI"
        )
    name = first["layer"] if first is not None else "the layer"
    return f"{text}: a fault of OpenVINO {ov.get_version().split('-')[0]}. Name {name} in quantization.ignored.scope, or try another preset"


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.3g}")


@functools.cache
def sums_saturate(device: str) -> bool:
    """Whether the device adds products of 8-bit numbers up in 16 bits, as CPUs without VNNI do: tried out."""
    levels = [np.float32(value) for value in (0, 255)]
    x = op.parameter([1, 64], np.float32)
    weights = op.fake_quantize(
        np.full((64, 16), 127, np.float32), np.float32(-127), np.float32(127), np.float32(-127), np.float32(127), 255
    )
    product = op.matmul(op.fake_quantize(x, *levels, *levels, 256), weights, False, False)
    compiled = engine.compile(ov.Model([op.result(product)], [x]), Engine(device=device), "f32", hint="LATENCY")
    (outputs,) = engine.infer(compiled, [Sample({"x": np.full((1, 64), 255, np.float32)})], 1)
    return bool(outputs[0].max() < 0.99 * 64 * 255 * 127)
