"""Recurrent cells: the CPU computes them wrong in INT8, so they stay in floating point unless POT is to be followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.measurement.written_out import written_out
from tests.quantization.quantizing import Quantized, compressed, infer, plan_of, quantized
from tests.quantization.small import constant, matmul, model, named, parameter, random

STEPS, INPUTS, STATE = 5, 6, 8
GATES = {"LSTMSequence": 4, "LSTMCell": 4, "GRUSequence": 3, "GRUCell": 3, "RNNSequence": 1, "RNNCell": 1}
REASON = "a recurrent cell, whose state the CPU clips in INT8"
SAMPLES = [random(1, STEPS, INPUTS, seed=seed) for seed in range(4)]


def recurrent(kind: str, x: ov.Node, state: ov.Node | None = None, directions: int = 1, **attributes: Any) -> ov.Node:
    """A cell over x; W is wider than R. state: null is a Constant."""
    rows, sequence = GATES[kind] * STATE, kind.endswith("Sequence")
    leading = (directions,) if sequence else ()
    weights = [constant(random(*leading, rows, inner, seed=seed) * spread, name) for name, inner, seed, spread in WEIGHTS]
    bias = constant(random(*leading, rows + (STATE if attributes.get("linear_before_reset") else 0), seed=3) / 10, "B")
    zeros = [constant(np.zeros((1, *leading, STATE)), name) for name in ("h", "c")]
    states = [state or zeros[0], *([zeros[1]] if kind.startswith("LSTM") else [])]
    lengths = [op.constant(np.array([STEPS], np.int32))] if sequence else []
    direction = ["bidirectional" if directions == 2 else "forward"] if sequence else []
    if kind == "RNNCell":
        attributes = {"activations": ["tanh"], "activations_alpha": [], "activations_beta": []}
    create = getattr(op, CREATE[kind])
    return named(create(x, *states, *lengths, *weights, bias, STATE, *direction, **attributes), "cell")


WEIGHTS = (("W", INPUTS, 1, 0.25), ("R", STATE, 2, 0.125))
CREATE = {kind: kind.replace("LSTM", "lstm_").replace("GRU", "gru_").replace("RNN", "rnn_").lower() for kind in GATES}


def network(kind: str, **options: Any) -> ov.Model:
    """A cell on what a ReLU leaves, with a MatMul after it; its state after each step is an output, too."""
    sequence = kind.endswith("Sequence")
    x = parameter((1, STEPS, INPUTS) if sequence else (1, INPUTS))
    cell = recurrent(kind, named(op.relu(x), "relu"), **options)
    tanh = named(op.tanh(cell.output(0)), "tanh")
    return model([matmul(tanh, random(STATE, 3) / 4, "last"), named(op.negative(tanh), "state")], x)


def nearly_the_same(result: Quantized, tested: ov.Model, samples: list[np.ndarray]) -> None:
    """AssertionError unless the states are the same, and what a quantized layer makes of them is close, wherever nothing saturates."""
    for ours, theirs in zip(infer(written_out(compressed(result.model)), samples), infer(tested, samples), strict=True):
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=0.15)


def widest(result: Quantized, port: int) -> float:
    return float(np.max(result.solved.ranges[f"cell/fq_weights_{port}"].high))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", ["LSTMSequence", "GRUSequence"])
@pytest.mark.parametrize("device", ["any", "cpu", "cpu_spr"])
def test_the_cpu_runs_them_in_floating_point(device: str, kind: str, directions: int) -> None:
    """In INT8 a negative state would become zero behind the ReLU: an error of 0.7."""
    tested = network(kind, directions=directions)
    result = quantized(tested, SAMPLES, device)
    assert result.floats()["cell", None] == REASON
    assert {quantizer.source.name for quantizer in result.plan.quantizers} == {"tanh", "last/weights"}
    nearly_the_same(result, tested, SAMPLES)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell", "RNNSequence"])
def test_cells_that_no_device_quantizes(kind: str) -> None:
    tested = network(kind)
    samples = SAMPLES if kind.endswith("Sequence") else [sample[:, 0] for sample in SAMPLES]
    result = quantized(tested, samples)
    assert result.floats()["cell", None] == f"ANY has no quantized {kind}"
    nearly_the_same(result, tested, samples)


def test_other_devices_have_none() -> None:
    for device in ("gpu", "npu", "gna"):
        floats = [entry for entry in plan_of(network("LSTMSequence"), device, pot_compatible=True).floats if entry.name == "cell"]
        assert [(entry.port, entry.reason) for entry in floats] == [(None, f"{device.upper()} has no quantized LSTMSequence")]


# ------------------------------------------------------------------------------------------------ where POT is followed


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "ports"), [("LSTMSequence", (1, 4, 5)), ("GRUSequence", (1, 3, 4))])
def test_each_constant_has_a_range_of_its_own(kind: str, ports: tuple[int, ...], directions: int) -> None:
    """POT keeps statistics of weights by the operation that reads them, so that W gets the range of R (section 13, 13)."""
    tested = network(kind, directions=directions)
    result = quantized(tested, SAMPLES, pot_compatible=True)
    assert {(place.port, quantizer.kind) for quantizer in result.plan.quantizers for place in quantizer.layers if place.name == "cell"} == {
        (0, "activations"),
        *((port, "weights") for port in ports),
    }
    largest = {node.name: float(np.abs(node.operation.data).max()) for node in result.graph.nodes if node.name in ("W", "R")}
    assert largest["W"] > 1.5 * largest["R"]
    assert widest(result, ports[1]) == largest["W"] and widest(result, ports[2]) == largest["R"]
    for which in (result.model, compressed(result.model)):
        assert all(np.isfinite(outputs[0]).all() for outputs in infer(which, SAMPLES))


def test_one_constant_for_both_weights() -> None:
    x, size = parameter((1, STEPS, STATE)), STATE
    shared = constant(random(1, 3 * size, size), "shared")
    lengths, bias = op.constant(np.array([STEPS], np.int32)), constant(np.zeros((1, 3 * size)), "B")
    cell = op.gru_sequence(x, constant(np.zeros((1, 1, size)), "h"), lengths, shared, shared, bias, size, "forward")
    tested, samples = model(matmul(op.tanh(named(cell, "cell").output(0)), random(size, 3), "last"), x), [random(1, STEPS, size)]
    for pot_compatible in (False, True):
        result = quantized(tested, samples, pot_compatible=pot_compatible)
        assert next(iter(infer(compressed(result.model), samples)))[0].shape == (1, 1, STEPS, 3)
    assert widest(result, 3) == widest(result, 4)


def test_the_input_and_the_state_share_a_range() -> None:
    x, start = parameter((1, STEPS, INPUTS)), parameter((1, 1, STATE), "start")
    cell = recurrent("GRUSequence", x, named(op.tanh(start), "state"))
    tested = model(named(op.squeeze(cell.output(0), np.array([1])), "end"), x, start)
    members = [quantizer for quantizer in plan_of(tested, pot_compatible=True).quantizers if quantizer.unified_group is not None]
    assert {quantizer.source.name for quantizer in members} == {"x", "state"}
    samples = [{"x": sample, "start": random(1, 1, STATE, seed=seed)} for seed, sample in enumerate(SAMPLES)]
    result = quantized(tested, samples, pot_compatible=True)
    assert len({tuple(map(float, result.solved.ranges[quantizer.name])) for quantizer in members}) == 1
    assert next(iter(infer(result.model, samples)))[0].shape == (1, STEPS, STATE)


def test_with_linear_before_reset_they_stay_in_floating_point() -> None:
    tested = network("GRUSequence", linear_before_reset=True)
    floats = {(entry.name, entry.port): entry.reason for entry in plan_of(tested, pot_compatible=True).floats}
    assert floats["cell", None] == "a recurrent cell with linear_before_reset"


def zero_state(kind: str, shape: tuple[int, int, int], directions: int = 1) -> ov.Model:
    """A cell whose initial state is zeros in the size of the batch, as PyTorch's export has it."""
    x = parameter(shape)
    sizes = op.shape_of(x)
    batch, steps = (op.gather(sizes, np.array([axis]), np.int64(0)) for axis in (0, 1))
    target = op.concat([batch, op.constant(np.array([directions, STATE]))], 0)
    zeros = [
        named(op.broadcast(constant(0.0, f"zero {name}"), target), name)
        for name in ("hidden", "memory")[: 2 if kind.startswith("LSTM") else 1]
    ]
    lengths = op.broadcast(op.convert(op.squeeze(steps, np.array([0])), "i32"), batch)
    rows, direction = GATES[kind] * STATE, "bidirectional" if directions == 2 else "forward"
    weights = [constant(random(directions, rows, inner, seed=seed) * spread, name) for name, inner, seed, spread in WEIGHTS]
    create, bias = getattr(op, CREATE[kind]), constant(np.zeros((directions, rows)), "B")
    cell = named(create(x, *zeros, lengths, *weights, bias, STATE, direction), "cell")
    tanh = named(op.tanh(cell.output(0)), "tanh")
    return model([matmul(tanh, random(STATE, 3) / 4, "last"), named(op.negative(tanh), "state")], x)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("steps", [STEPS, -1])
@pytest.mark.parametrize(("kind", "ports"), [("LSTMSequence", (4, 5)), ("GRUSequence", (3, 4))])
def test_a_state_computed_from_shapes_is_left_and_the_rest_quantized(
    kind: str, ports: tuple[int, int], steps: int, directions: int
) -> None:
    """As POT 2023.3 does."""
    result = quantized(zero_state(kind, (1, steps, INPUTS), directions), SAMPLES, pot_compatible=True)
    found = {(place.port, quantizer.kind) for quantizer in result.plan.quantizers for place in quantizer.layers if place.name == "cell"}
    assert found == {(0, "activations"), *((port, "weights") for port in ports)}
    assert {port: reason for (name, port), reason in result.floats().items() if name == "cell"} == {1: "input is computed from shapes"}
    assert all(quantizer.unified_group is None for quantizer in result.plan.quantizers)
    for which in (result.model, compressed(result.model)):
        assert all(np.isfinite(outputs[0]).all() for outputs in infer(which, SAMPLES))


@pytest.mark.parametrize("kind", ["LSTMSequence", "GRUSequence"])
def test_a_state_of_dynamic_size_keeps_the_cell_in_floating_point(kind: str) -> None:
    """OpenVINO 2026.4's CPU compiles no cell of which the weights are quantized and the state is not."""
    tested = zero_state(kind, (-1, STEPS, INPUTS))
    for pot_compatible, reason in ((False, REASON), (True, "a recurrent cell with a state of dynamic size")):
        result = quantized(tested, SAMPLES, correction=schema.BiasCorrection(), pot_compatible=pot_compatible)
        assert result.floats()["cell", None] == reason
        for ours, theirs in zip(infer(compressed(result.model), SAMPLES), infer(tested, SAMPLES), strict=True):
            np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-5)
