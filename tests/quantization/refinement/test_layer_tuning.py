"""The tuning of one layer: gradients against finite differences, steps worked by hand, and never a worse layer."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from stages.quantization.refinement.layer_samples import Rows, held_out
from stages.quantization.refinement.layer_tuning import Changes, Grid, Layer, Problem, Settings, mean_squared_error, tune

ALL = Settings(steps=40, batch_size=16, weights=0.05, bias=0.05, weight_scale=0.01, input_scale=0.01)


def grid(high: np.ndarray | float, levels: int, shape: tuple[int, ...]) -> Grid:
    border = np.broadcast_to(np.asarray(high, np.float32), shape).copy()
    return Grid(-border, border, levels)


def case(
    seed: int = 0,
    groups: int = 1,
    outputs: int = 3,
    channels: int = 4,
    taps: int = 2,
    rows: int = 50,
    bits: int = 4,
    perchannel: bool = True,
    channel_inputs: bool = False,
    **more: bool,
) -> tuple[Layer, Rows]:
    """A layer whose range clips some inputs and weights, and rows of what it was before quantization."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((groups, outputs, channels * taps)).astype(np.float32)
    bias = generator.standard_normal((groups, 1, outputs)).astype(np.float32)
    # Alike, or rounding each weight to its nearest level would be best already.
    inputs = 0.4 * generator.standard_normal((groups, rows, channels, taps)) + 0.6 * generator.standard_normal((groups, rows, 1, 1))
    exact = inputs.reshape(groups, rows, -1) @ weights.swapaxes(1, 2) + bias
    highest = np.abs(weights).max(axis=2, keepdims=True) * 0.9
    weight_grid = grid(highest if perchannel else highest.max(), 2**bits - 1, (groups, outputs, 1) if perchannel else (1, 1, 1))
    input_grid = grid(1.2, 2**bits - 1, (groups, 1, channels, 1) if channel_inputs else (1, 1, 1, 1))
    return Layer(weights, bias, weight_grid, input_grid, **more), Rows(inputs.astype(np.float32), exact.astype(np.float32), np.arange(rows))


def surrogate(problem: Problem, at: Changes, rows: Rows) -> float:
    """The loss with the share of a step that rounding moved a value by held fixed: what straight-through gradients are of."""
    layer, start = problem.changed(at), problem.layer
    assert layer.input_grid is not None and start.input_grid is not None

    def quantized(values: np.ndarray, before: np.ndarray, now: Grid, first: Grid) -> np.ndarray:
        rounding = (np.float64(first(before)) - before) / first.step
        return np.clip(values, now.low, now.high) * ~now.inside(values) + (values + rounding * now.step) * now.inside(values)

    inputs = quantized(rows.inputs, rows.inputs, layer.input_grid, start.input_grid)
    weights = quantized(layer.weights, start.weights, layer.weight_grid, start.weight_grid)
    outputs = inputs.reshape(*inputs.shape[:2], -1) @ weights.swapaxes(1, 2) + layer.bias
    return float(np.mean((outputs - rows.outputs) ** 2)) / problem.start


@pytest.mark.parametrize("options", [{}, {"perchannel": False}, {"groups": 3}, {"groups": 2, "channel_inputs": True}])
def test_gradients_are_those_of_finite_differences(options: dict[str, int]) -> None:
    layer, rows = case(**options)  # type: ignore[arg-type]
    # In double precision, for the differences.
    layer = replace(layer, weights=layer.weights.astype(np.float64), bias=layer.bias.astype(np.float64))
    problem, nothing = Problem(layer, 0.37), Changes.none(layer)
    nothing = Changes(**{field.name: getattr(nothing, field.name).astype(np.float64) for field in fields(Changes)})
    loss, gradients = problem.gradients(nothing, rows)
    assert loss == pytest.approx(surrogate(problem, nothing, rows), rel=1e-5)
    assert not layer.weight_grid.inside(layer.weights).all()
    for field in fields(Changes):
        shape = getattr(nothing, field.name).shape
        expected = np.zeros(shape)
        for place in np.ndindex(*shape):
            sides = []
            for step in (1e-4, -1e-4):
                values = getattr(nothing, field.name).copy()
                values[place] = step
                sides.append(surrogate(problem, replace(nothing, **{field.name: values}), rows))
            expected[place] = (sides[0] - sides[1]) / 2e-4
        assert np.abs(expected).max() > 1e-3, field.name
        np.testing.assert_allclose(getattr(gradients, field.name), expected, rtol=2e-2, atol=2e-3, err_msg=field.name)


def test_one_weight_by_hand() -> None:
    """A layer 2 x + 1 with weights of -3, 0 and 3 and no input quantizer: 2 becomes 3."""
    one = np.ones((1, 1, 1), np.float32)
    layer = Layer(2 * one, one, Grid(-3 * one, 3 * one, 3))
    rows = Rows(np.array([1.0, 3.0], np.float32).reshape(1, 2, 1, 1), np.array([3.0, 7.0], np.float32).reshape(1, 2, 1), np.arange(2))
    assert mean_squared_error(layer, rows) == 5.0  # (4 - 3)² and (10 - 7)², over two
    loss, gradients = Problem(layer, 5.0).gradients(Changes.none(layer), rows)
    assert loss == 1.0
    # d/dw = mean of 2 (y' - y) x = 1 * 1 + 3 * 3 = 10, over 5; one step is 3.
    assert gradients.weights.item() == pytest.approx(10 / 5 * 3)
    # d/db = 1 + 3, over 5; its unit is the root of 5.
    assert gradients.bias.item() == pytest.approx(4 / 5 * np.sqrt(5), rel=1e-6)
    # d/dlog s = d/dw' (w' - w), as 2 lies inside.
    assert gradients.weight_scale.item() == pytest.approx(10 / 5 * (3 - 2))
    outside = replace(layer, weights=4 * one)
    _, gradients = Problem(outside, 5.0).gradients(Changes.none(outside), rows)
    assert gradients.weights.item() == 0.0 and gradients.weight_scale.item() == pytest.approx(10 / 5 * 3)


def stepped(layer: Layer, rows: Rows, settings: Settings) -> Layer:
    """The layer after one step on all rows to learn from, which must be an improvement."""
    found = tune(layer, rows, replace(settings, steps=1, batch_size=1000), np.random.default_rng(0)).layer
    assert found is not None
    return found


def test_one_step_of_either_optimizer() -> None:
    layer, rows = case()
    layer = replace(layer, bias=layer.bias + 2)
    learned = rows.take(~held_out(rows))
    start = mean_squared_error(layer, learned)
    _, gradients = Problem(layer, start).gradients(Changes.none(layer), learned)
    unit = np.sqrt(start)
    descended = stepped(layer, rows, Settings("SGD", bias=0.1))
    np.testing.assert_allclose(descended.bias - layer.bias, -0.1 * gradients.bias * unit, rtol=1e-4)
    # Adam's first step has the length of its rate, whatever the gradient.
    adam = stepped(layer, rows, Settings("Adam", bias=0.1))
    np.testing.assert_allclose(adam.bias - layer.bias, -0.1 * np.sign(gradients.bias) * unit, rtol=1e-4)
    for found in (descended, adam):  # rates of 0
        np.testing.assert_array_equal(found.weights, layer.weights)
        np.testing.assert_array_equal(found.weight_grid.high, layer.weight_grid.high)


def test_every_rate_moves_what_it_is_of() -> None:
    layer, rows = case(bits=3, rows=400)
    wide = replace(layer, input_grid=grid(9.0, 7, (1, 1, 1, 1)))
    shifted = replace(layer, bias=layer.bias + np.float32(0.5))
    start = {"weights": layer.weights, "bias": layer.bias, "weight_scale": layer.weight_grid.high}
    for name in ("weights", "bias", "weight_scale", "input_scale"):
        rates: Any = {name: 0.05}
        before = {"bias": shifted, "input_scale": wide}.get(name, layer)
        found = tune(before, rows, Settings(steps=60, batch_size=16, **rates), np.random.default_rng(1)).layer
        assert found is not None and found.input_grid is not None and before.input_grid is not None, name
        after = {"weights": found.weights, "bias": found.bias, "weight_scale": found.weight_grid.high}
        start["bias"] = before.bias
        moved = {key for key, value in after.items() if not np.array_equal(value, start[key])}
        moved |= set() if np.array_equal(found.input_grid.high, before.input_grid.high) else {"input_scale"}
        assert moved == {name}


def test_weight_decay_keeps_the_parameters_near_their_start() -> None:
    layer, rows = case()
    layer = replace(layer, bias=layer.bias + 2)
    moves = []
    for decay in (0.0, 5.0):
        settings = Settings("SGD", steps=50, batch_size=16, bias=0.1, weight_decay=decay)
        found = tune(layer, rows, settings, np.random.default_rng(0)).layer
        assert found is not None
        moves.append(float(np.abs(found.bias - layer.bias).mean()))
    assert moves[1] < 0.5 * moves[0]


def test_the_bias_goes_where_the_mean_error_is_zero() -> None:
    layer, rows = case(rows=200)
    layer = replace(layer, bias=layer.bias + np.float32(3))
    outcome = tune(layer, rows, Settings(steps=400, batch_size=160, bias=0.02), np.random.default_rng(0))
    assert outcome.layer is not None
    learned = rows.take(~held_out(rows))
    best = layer.bias + (learned.outputs - exact_outputs(layer, learned)).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(outcome.layer.bias, best, atol=0.05)


def exact_outputs(layer: Layer, rows: Rows) -> np.ndarray:
    assert layer.input_grid is not None
    inputs = layer.input_grid(rows.inputs).reshape(*rows.inputs.shape[:2], -1)
    return inputs @ layer.weight_grid(layer.weights).swapaxes(1, 2) + layer.bias


def test_batches_and_steps() -> None:
    """Steps of 16 of the 40 rows to learn from: every row is seen before one comes twice."""
    from stages.quantization.refinement.layer_tuning import _batches

    seen = list(_batches(40, Settings(steps=5, batch_size=16), np.random.default_rng(0)))
    assert [len(batch) for batch in seen] == [16] * 5
    together = np.concatenate(seen)
    assert sorted(together[:40]) == sorted(together[40:80]) == [*range(40)]
    assert [len(batch) for batch in _batches(10, Settings(steps=2, batch_size=16), np.random.default_rng(0))] == [10, 10]


def test_doubled_layers_stay_on_half_of_their_levels() -> None:
    layer, rows = case(bits=5, doubled=True)
    inner = layer.weight_grid.high / 2
    layer = replace(layer, weights=np.clip(layer.weights, -inner, inner))
    start = mean_squared_error(layer, rows)
    outcome = tune(layer, rows, replace(ALL, weights=1.0, weight_scale=1.0), np.random.default_rng(0))
    assert outcome.layer is not None and outcome.loss_after < start
    assert np.all(np.abs(outcome.layer.weights) <= inner * (1 + 1e-6))
    assert not np.array_equal(outcome.layer.weights, layer.weights)
    np.testing.assert_array_equal(outcome.layer.weight_grid.high, layer.weight_grid.high)


def test_a_layer_without_an_error_stays() -> None:
    layer, rows = case()
    rows = Rows(rows.inputs, exact_outputs(layer, rows).astype(np.float32), rows.sample)
    outcome = tune(layer, rows, ALL, np.random.default_rng(0))
    assert outcome.layer is None and outcome.loss_before == outcome.loss_after == 0.0


def test_zero_stays_on_a_level() -> None:
    """An asymmetric input range moves as a whole."""
    layer, rows = case(rows=200)
    one = np.ones((1, 1, 1, 1), np.float32)
    layer = replace(layer, input_grid=Grid(-one, 2 * one, 16))
    outcome = tune(layer, rows, replace(ALL, steps=100), np.random.default_rng(0))
    assert outcome.layer is not None and outcome.layer.input_grid is not None
    low, high = outcome.layer.input_grid.low.item(), outcome.layer.input_grid.high.item()
    assert high != 2.0 and high / low == pytest.approx(-2.0, rel=1e-6)


@checks(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.sampled_from([1, 3]),
    bits=st.integers(2, 8),
    rows=st.integers(2, 40),
    rate=st.sampled_from([1e-4, 0.02, 0.5, 30.0]),
    optimizer=st.sampled_from(["Adam", "SGD"]),
    perchannel=st.booleans(),
    doubled=st.booleans(),
    tune_input=st.booleans(),
)
def test_never_worse(
    seed: int, groups: int, bits: int, rows: int, rate: float, optimizer: str, perchannel: bool, doubled: bool, tune_input: bool
) -> None:
    """Whatever the rates, even absurd ones: better on the held-out rows, or nothing; and finite."""
    layer, data = case(seed, groups, bits=bits, rows=rows, perchannel=perchannel, doubled=doubled, tune_input=tune_input)
    settings = Settings(optimizer, 15, 8, rate, rate, rate, rate)
    with np.errstate(all="ignore"):
        outcome = tune(layer, data, settings, np.random.default_rng(seed))
    judged = data.take(held_out(data))
    assert outcome.loss_before == mean_squared_error(layer, judged)
    if outcome.layer is None:
        return
    assert outcome.loss_after < outcome.loss_before and outcome.loss_after == mean_squared_error(outcome.layer, judged)
    assert np.isfinite(outcome.layer.weights).all() and np.isfinite(outcome.layer.bias).all()
    if not tune_input:
        assert outcome.layer.input_grid is not None and layer.input_grid is not None
        np.testing.assert_array_equal(outcome.layer.input_grid.high, layer.input_grid.high)


def test_tuning_helps_and_repeats() -> None:
    layer, rows = case(rows=400, outputs=8, channels=8)
    first, second = (tune(layer, rows, ALL, np.random.default_rng(5)) for _ in range(2))
    assert first.layer is not None and second.layer is not None
    assert first.loss_after < 0.8 * first.loss_before
    assert first.layer.weights.tobytes() == second.layer.weights.tobytes() and first.layer.bias.tobytes() == second.layer.bias.tobytes()
