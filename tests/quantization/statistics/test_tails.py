"""Tails against plain numpy sorts, and quantiles taken from them against np.quantile."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as op

from stages.quantization.statistics import tail_search
from stages.quantization.statistics.tail_search import find_tails
from stages.quantization.statistics.tails import (
    absolute_tail,
    extremes,
    tail_length,
    tail_quantile,
)
from tests.quantization.quantizing import infer

PROBABILITIES = st.sampled_from([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.49])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Random, tied, constant and tiny arrays."""
    size = draw(st.integers(1, 40) | st.integers(40, 3000))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "relu6", "few values", "constant"]))
    values = generator.normal(0, draw(st.sampled_from([1e-3, 1.0, 1e4])), size)
    if kind == "relu6":
        values = np.clip(values, 0, 6)
    elif kind == "few values":
        values = np.round(values)
    elif kind == "constant":
        values = np.full(size, values[0])
    return values.astype(np.float32)


def both_tails(values: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    return extremes(values, length, upper=False), extremes(values, length, upper=True)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@given(arrays(), PROBABILITIES)
@settings(max_examples=300, deadline=None)
def test_quantiles_are_numpys(values: np.ndarray, probability: float) -> None:
    low, high = both_tails(values, tail_length(values.size, [probability]))
    exact = values.astype(np.float64)
    close(tail_quantile(low, values.size, probability), np.quantile(exact, probability))
    close(tail_quantile(high, values.size, probability), np.quantile(exact, 1 - probability))
    close(tail_quantile(absolute_tail(low, high, values.size), values.size, probability), np.quantile(np.abs(exact), 1 - probability))


@given(arrays(), PROBABILITIES, PROBABILITIES)
@settings(max_examples=100, deadline=None)
def test_a_longer_tail_gives_the_same_quantiles(values: np.ndarray, probability: float, further: float) -> None:
    length = tail_length(values.size, [probability, further])
    low, high = both_tails(values, length)
    shorter = both_tails(values, tail_length(values.size, [probability]))
    close(tail_quantile(low, values.size, probability), tail_quantile(shorter[0], values.size, probability))
    long, short = (absolute_tail(*tails, values.size) for tails in ((low, high), shorter))
    close(tail_quantile(long, values.size, probability), tail_quantile(short, values.size, probability))


def test_samples_of_different_size_share_a_table() -> None:
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=size).astype(np.float32) for size in (5, 50, 500)]
    width = tail_length(500, [0.01])
    low, high = (np.full((3, width), np.nan, np.float32) for _ in range(2))
    for row, values in enumerate(samples):
        for table, tail in zip((low, high), both_tails(values, tail_length(values.size, [0.01])), strict=True):
            table[row, : tail.size] = tail
    sizes = np.array([5, 50, 500])
    close(tail_quantile(low, sizes, 0.01), [np.quantile(values.astype(np.float64), 0.01) for values in samples])
    magnitudes = [np.quantile(np.abs(values.astype(np.float64)), 0.99) for values in samples]
    close(tail_quantile(absolute_tail(low, high, sizes), sizes, 0.01), magnitudes)


def test_a_tail_that_is_too_short_is_refused() -> None:
    with pytest.raises(KeyError, match="does not reach"):
        tail_quantile(np.zeros(3, np.float32), 1000, 0.01)


def test_tail_length() -> None:
    assert tail_length(1000, []) == 1
    assert tail_length(1000, [1e-4]) == 2
    assert tail_length(1000, [1e-4, 0.01]) == 11  # between the values 9.99 from the end
    assert tail_length(3, [0.4]) == 2
    assert tail_length(0, [0.4]) == 0


SHAPES = [(7,), (1,), (3, 5), (1, 1000), (2, 7, 30), (1, 3, 16, 16), (1, 64, 12, 10), (2, 5, 9, 7), (1, 4, 3, 5, 6), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_tails_found_in_the_graph(shape: tuple[int, ...], length: int, tied: bool) -> None:
    values = sample(shape, tied)
    length = min(length, values.size)
    for computed in (False, True):
        low, high = in_graph(values, length, None, computed)
        check(low.reshape(-1), high.reshape(-1), values.reshape(-1), length)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 10])
@pytest.mark.parametrize("tied", [False, True])
def test_tails_per_channel_found_in_the_graph(shape: tuple[int, ...], length: int, tied: bool) -> None:
    values = sample(shape, tied)
    columns = np.moveaxis(values, 1, 0).reshape(shape[1], -1)
    length = min(length, columns.shape[1])
    low, high = in_graph(values, None, length, computed=True)
    check(low, high, columns, length)


# 67 and 71 have no divisor that could be a cell; of 24 x 56 x 56 values some are searched twice and few leave.
@pytest.mark.parametrize("shape", [shape for shape in [*SHAPES, (1, 5, 1, 67), (1, 9, 71, 71), (1, 24, 56, 56)] if len(shape) > 1], ids=str)
@pytest.mark.parametrize(("length", "channel_length"), [(1, 1), (3, 1), (100, 1), (1, 2), (3, 2), (100, 5)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("long", [0, tail_search.LONG])
def test_both_found_at_once(
    shape: tuple[int, ...], length: int, channel_length: int, tied: bool, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_search, "LONG", long)  # of small tensors both are otherwise found one by one
    values = sample(shape, tied)
    columns = np.moveaxis(values, 1, 0).reshape(shape[1], -1)
    length, channel_length = min(length, values.size), min(channel_length, columns.shape[1])
    low, high, channel_low, channel_high = in_graph(values, length, channel_length, computed=True)
    check(low.reshape(-1), high.reshape(-1), values.reshape(-1), length)
    check(channel_low, channel_high, columns, channel_length)


@pytest.mark.parametrize(
    ("shape", "channel_length", "reads"),
    [((1, 24, 56, 56), 1, 1), ((1, 64, 56, 56), 2, 1), ((1, 24, 28, 28), 2, 2), ((1, 9, 71, 71), 1, 2)],
    ids=str,
)
def test_how_often_a_tensor_is_read_and_how_much_of_it_is_searched(shape: tuple[int, ...], channel_length: int, reads: int) -> None:
    tensor = op.relu(op.parameter(list(shape), np.float32))
    found = find_tails(tensor.output(0), 9, channel_length, lowest=False)
    assert found.whole
    assert found.channels
    model = ov.Model([op.result(ends[1]) for ends in (found.whole, found.channels)], [tensor.input_value(0).get_node()])
    reductions = [node for node in model.get_ops() if node.get_type_name() == "ReduceMax"]
    assert sum(math.prod(node.input_value(0).get_shape()) == math.prod(shape) for node in reductions) == reads
    searched = [math.prod(node.input_value(0).get_shape()) for node in model.get_ops() if node.get_type_name() == "TopK"]
    assert max(searched) <= math.prod(shape) // 8


def test_few_values_leave_the_graph() -> None:
    values = np.random.default_rng(0).normal(size=(1, 64, 56, 56)).astype(np.float32)
    for length, most in ((1, 1), (2, values.size // 50), (30, values.size // 10)):
        assert all(candidates.size <= most for candidates in in_graph(values, length, None, computed=True))


def sample(shape: tuple[int, ...], tied: bool) -> np.ndarray:
    values = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    return np.round(values) if tied else values


def check(low: np.ndarray, high: np.ndarray, values: np.ndarray, length: int) -> None:
    """The tails among the candidates are those of all values, along the last axis."""
    ordered = np.sort(values, axis=-1)
    np.testing.assert_array_equal(extremes(low, length, upper=False), ordered[..., :length])
    np.testing.assert_array_equal(extremes(high, length, upper=True), ordered[..., ::-1][..., :length])


def in_graph(values: np.ndarray, length: int | None, channel_length: int | None, computed: bool) -> list[np.ndarray]:
    """What leaves the graph of a tensor from outside, or of one that an operation computes."""
    source = op.parameter(list(values.shape), np.float32)
    tensor = op.negative(op.negative(source)) if computed else source
    found = find_tails(tensor.output(0), length, channel_length)
    ends = [end for pair in (found.whole, found.channels) if pair for end in pair if end is not None]
    model = ov.Model([op.result(end) for end in ends], [source])
    return list(next(infer(model, [values])))


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("nans", [0, 1])
def test_tails_of_long_arrays_are_those_of_all_values(upper: bool, nans: int) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 5003)).astype(np.float32)  # a prime: rows do not divide it
    values[1, 2, :nans] = np.nan
    ordered = np.sort(values, axis=-1)  # what is not a number comes last, as everywhere
    np.testing.assert_array_equal(extremes(values, 7, upper=upper), ordered[..., ::-1][..., :7] if upper else ordered[..., :7])
