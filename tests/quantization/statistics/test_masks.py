"""Values that are infinite or stand for it: what reads them stays float, and quantizers stay below what cuts them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.noise import ActivationNoise
from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.masks import ADVICE, MASK, NOT_FINITE, STAND_IN, warnings
from tests.quantization.quantizing import Quantized, close, infer, quantized
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

LOWEST = float(np.finfo(np.float32).min)
TOKENS = 6


def attention(mask: Callable[[ov.Node], ov.Node], position_bias: bool = False, half: bool = False) -> ov.Model:
    """One head of attention over six tokens, of which `mask` hides those where `m` is 0."""
    x, m = parameter((1, TOKENS, 8)), parameter((1, 1, TOKENS), "m")
    q, k, v = (matmul(x, random(8, 8, seed=seed) / 3, name) for seed, name in enumerate("qkv"))
    scores = named(op.matmul(q, k, False, True), "scores")
    masked = named(op.add(scores, mask(m)), "masked")
    if position_bias:
        masked = named(op.add(masked, constant(random(1, TOKENS, TOKENS, seed=5), "positions")), "biased")
    context = op.matmul(named(op.softmax(masked, 2), "weights"), v, False, False)
    return model(matmul(named(context, "context"), random(8, 4, seed=4), "out"), x, m)


def products(value: float) -> Callable[[ov.Node], ov.Node]:
    """The usual way: (1 - m) * value."""
    return lambda m: named(op.multiply(op.subtract(np.float32(1), m), np.float32(value)), "mask")


def chosen(value: float) -> Callable[[ov.Node], ov.Node]:
    return lambda m: named(op.select(op.equal(m, np.float32(0)), np.float32(value), np.float32(0)), "mask")


def half_precision(value: float) -> Callable[[ov.Node], ov.Node]:
    stored = constant([[[value]]], "stored", np.float16)
    return lambda m: named(op.multiply(op.subtract(np.float32(1), m), op.convert(stored, "f32")), "mask")


def tokens(count: int = 24, hidden: bool = True) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    lengths = generator.integers(3, TOKENS, count) if hidden else np.full(count, TOKENS)
    return [
        {
            "x": generator.standard_normal((1, TOKENS, 8)).astype(np.float32),
            "m": (np.arange(TOKENS) < length).astype(np.float32).reshape(1, 1, TOKENS),
        }
        for length in lengths
    ]


def reasons(found: Quantized) -> dict[str, str]:
    return {name: reason for (name, port), reason in found.floats().items() if port is None}


def error(found: Quantized, tested: ov.Model, samples: list[Any]) -> float:
    ours, theirs = (np.concatenate([values[0] for values in infer(version, samples)]) for version in (found.model, tested))
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())


@pytest.mark.parametrize("preset", schema.PRESETS)
@pytest.mark.parametrize("position_bias", [False, True])
@pytest.mark.parametrize("mask", [products(LOWEST), products(-1e9), products(-1e4), chosen(-1e9), chosen(LOWEST), half_precision(-65504)])
def test_masks_do_not_ruin_attention(mask: Callable[[ov.Node], ov.Node], position_bias: bool, preset: str) -> None:
    """The sums stay float, and nothing is lost to what a mask of -50, which hides as well, would cost."""
    tested, harmless, samples = attention(mask, position_bias), attention(products(-50.0), position_bias), tokens()
    found = quantized(tested, samples, preset=preset)
    sums = {"masked", "biased"} if position_bias else {"masked"}
    assert {name for name, reason in reasons(found).items() if reason in (MASK, STAND_IN)} == sums
    assert error(found, tested, samples) < 1.1 * error(quantized(harmless, samples, preset=preset), harmless, samples) + 0.01
    assert warnings(found.graph, found.plan, "none") == [ADVICE] and not warnings(found.graph, found.plan, "transformer")
    noise = ActivationNoise(tested, found.plan, found.solved.ranges)
    ratios = noise.ratios(infer(noise.model, samples))
    assert ratios and all(value is not None and np.isfinite(value) for value in ratios.values())


@pytest.mark.parametrize("mask", [products(-1e9), chosen(-1e9), half_precision(-65504), products(LOWEST)])
def test_masks_that_no_sample_uses_are_masks(mask: Callable[[ov.Node], ov.Node]) -> None:
    tested, harmless, samples = attention(mask), attention(products(-50.0)), tokens(hidden=False)
    found = quantized(tested, samples)
    assert reasons(found)["masked"] == MASK
    # Else the mask would have a range of nothing.
    assert error(found, tested, tokens()) < 1.1 * error(quantized(harmless, tokens()), harmless, tokens())


def test_a_mask_may_come_from_outside_and_in_any_order() -> None:
    given, m = parameter((1, 4)), parameter((1, 4), "m")
    x = matmul(given, random(4, 4, seed=2), "scores")
    first, second = (named(op.softmax(named(op.add(*pair), name), 1), f"{name}/softmax") for name, pair in (("xm", (x, m)), ("mx", (m, x))))
    difference = named(op.log_softmax(named(op.subtract(x, named(op.negative(m), "n")), "less"), 1), "log")
    tested = model([first, second, difference], given, m)
    samples = [{"x": random(1, 4), "m": np.array([[0, 0, -1e9, -1e9]], np.float32)}, {"x": random(1, 4), "m": np.zeros((1, 4), np.float32)}]
    gainless = "nothing to gain: an operand comes from no layer with weights"
    assert {reasons(quantized(tested, samples)).get(name) for name in ("xm", "mx")} == {gainless}
    samples[0]["m"] = np.array([[0, 0, LOWEST, 0]], np.float32)
    found = reasons(quantized(tested, samples))
    assert (found["xm"], found["mx"], found["less"]) == (gainless, gainless, gainless)
    as_pot = reasons(quantized(tested, samples, pot_compatible=True))
    assert {as_pot[name] for name in ("xm", "mx", "less")} == {STAND_IN}


def test_large_negative_numbers_elsewhere_are_numbers() -> None:
    """Before a softmax they hide; the output of a layer, or a sum of two layers, may simply be large."""
    x = parameter((1, 8))
    sums = named(op.add(matmul(x, random(8, 8) * 3e4, "first"), matmul(x, random(8, 8, seed=1) * 3e4, "second")), "sum")
    tested, samples = model([matmul(sums, random(8, 4) / 3e4, "last")], x), images(6, (1, 8))
    found = quantized(tested, samples)
    assert {"first", "second", "last", "sum"} <= {place.name for quantizer in found.plan.quantizers for place in quantizer.layers}
    assert not warnings(found.graph, found.plan, "none")


def test_pot_compatible_quantizes_masks_that_f32_can_hold() -> None:
    assert "masked" not in reasons(quantized(attention(products(-1e4)), tokens(), pot_compatible=True))
    assert reasons(quantized(attention(products(LOWEST)), tokens(), pot_compatible=True))["masked"] == STAND_IN


# ----------------------------------------------------------------------------------------------- what cuts values off


def logarithms(count: int = 4, shape: tuple[int, ...] = (1, 3, 8, 8)) -> list[np.ndarray]:
    """Images a third of which is zero, and whose logarithm is infinite."""
    return [np.where(np.abs(image) > 0.5, np.abs(image), 0).astype(np.float32) for image in images(count, shape)]


CUTS: dict[str, Callable[[ov.Node], ov.Node]] = {
    "maximum": lambda x: op.maximum(x, constant([[[[-10.0]]]], "floor")),
    "maximum per channel": lambda x: op.maximum(x, constant([-10.0, -9.0, -8.0, -7.0] * 2, "floor")),
    "maximum and reshape": lambda x: op.reshape(op.maximum(x, np.float32(-10)), np.array([1, 3, 4, 16]), False),
    "maximum and transpose": lambda x: op.transpose(op.maximum(x, np.float32(-10)), np.array([0, 1, 3, 2])),
    "maximum twice": lambda x: op.maximum(op.maximum(x, np.float32(-20)), np.float32(-10)),
    "maximum and pad": lambda x: op.pad(op.maximum(x, np.float32(-10)), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), "constant"),
}


@pytest.mark.parametrize("pot_compatible", [False, True])
@pytest.mark.parametrize("preset", schema.PRESETS)
@pytest.mark.parametrize("cut", CUTS)
def test_the_quantizer_stays_below_what_cuts_infinite_values_off(cut: str, preset: str, pot_compatible: bool) -> None:
    x = parameter((1, 3, 8, 8))
    above = named(op.log(x), "log")
    below = named(CUTS[cut](above), "cut")
    tested = model(convolution(below, random(4, 3, 3, 3), "conv"), x)
    samples = logarithms()
    found = quantized(tested, samples, preset=preset, pot_compatible=pot_compatible)
    (quantizer,) = (quantizer for quantizer in found.plan.quantizers if quantizer.kind == "activations")
    assert quantizer.source.name not in ("log", "x") and "conv" in {place.name for place in quantizer.layers}
    assert NOT_FINITE not in reasons(found).values()
    low = float(found.solved.ranges[quantizer.name].low)
    assert (-20.5 if cut == "maximum twice" else -10.5) < low < -1
    if preset != "accuracy":  # AVX2's products of unsigned and asymmetric weights saturate
        close(found, tested, samples, share=0.2)


@pytest.mark.parametrize("pot_compatible", [False, True])
def test_a_quantizer_does_not_move_to_a_range_of_which_hardly_a_level_is_left(pot_compatible: bool) -> None:
    """Token vectors of which a mask of -1e9 leaves some, and the largest of each: above the reduction they span -1e9."""
    x, m = parameter((1, TOKENS, 8)), parameter((1, TOKENS, 1), "m")
    hidden = op.add(matmul(x, random(8, 8), "layer"), op.multiply(op.subtract(np.float32(1), m), np.float32(-1e9)))
    largest = named(op.reduce_max(named(hidden, "hidden"), np.array([1]), False), "largest")
    tested = model(matmul(largest, random(8, 4), "head"), x, m)
    samples = [{"x": random(1, TOKENS, 8, seed=seed), "m": np.ones((1, TOKENS, 1), np.float32)} for seed in range(8)]
    for sample in samples:
        sample["m"][:, 4:] = 0
    found = quantized(tested, samples, pot_compatible=pot_compatible)
    source = next(q.source.name for q in found.plan.quantizers if ("head", 0) in {(place.name, place.port) for place in q.layers})
    assert source == ("hidden" if pot_compatible else "largest")
    assert (error(found, tested, samples) < 0.5) != pot_compatible


def test_a_split_with_a_small_part_is_quantized_part_by_part() -> None:
    """Else the small part would be nothing but zeros: coordinates beside scores."""
    x = parameter((1, 8))
    scaled = named(op.multiply(op.relu(x), constant([[1000.0] * 4 + [1.0] * 4], "units")), "scaled")
    parts = named(op.split(scaled, np.int64(1), 2), "parts")
    tested = model([named(op.matmul(parts.output(index), random(4, 3), False, False), f"head{index}") for index in (0, 1)], x)
    samples = images(8, (1, 8))
    found = quantized(tested, samples)
    by_source = {q.source: q.name for q in found.plan.quantizers if q.kind == "activations" and q.layers[0].name.startswith("head")}
    assert by_source.keys() == {("parts", 0), ("parts", 1)}
    first, second = (float(found.solved.ranges[by_source[TensorName("parts", index)]].high) for index in (0, 1))
    assert first > 500 * second
