"""Models that keep a state from one inference to the next: every sample begins afresh, or goes on where the one before it ended."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration.schema import Engine
from stages.measurement import fidelity, latency
from stages.runtime import engine
from stages.runtime.datasets import Sample, Samples, model_inputs
from stages.runtime.metrics import ReferenceError
from stages.runtime.requests import Requests, infer_once, keeps_state
from tests.runtime.models import named

WIDTH = 4
STREAMS = ["a"] * 50 + ["b"] * 3 + ["c"] * 67


def summing(initial: bool = True) -> ov.Model:
    """The sum of all inputs so far."""
    x = op.parameter([1, WIDTH], np.float32, name="x")
    start = [np.zeros((1, WIDTH), np.float32)] if initial else []
    state = op.read_value(*start, "sum", ov.Type.f32, ov.PartialShape([1, WIDTH]))
    total = op.add(state, x)
    total.set_friendly_name("total")
    return named(ov.Model([op.result(total)], [op.assign(total, "sum")], [x]))


def collecting() -> ov.Model:
    """All inputs so far: a state that grows, as the keys and values of a language model do."""
    x = op.parameter([1, WIDTH], np.float32, name="x")
    state = op.read_value(np.zeros((0, WIDTH), np.float32), "rows", ov.Type.f32, ov.PartialShape([-1, WIDTH]))
    rows = op.concat([state, x], 0)
    return named(ov.Model([op.result(rows)], [op.assign(rows, "rows")], [x]))


class Rows:
    """Random rows; counts how often they are read."""

    def __init__(self, count: int) -> None:
        self.values = np.random.default_rng(0).integers(-8, 8, (count, 1, WIDTH)).astype(np.float32)
        self.read = 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> np.ndarray:
        self.read += 1
        return np.asarray(self.values[index])


def samples_of(model: ov.Model, streams: Sequence[str] | None = None, count: int = len(STREAMS)) -> Samples:
    return Samples(Rows(count), model_inputs(model), streams=streams)


def sums(samples: Samples) -> list[np.ndarray]:
    """What `summing` gives for streams, by arithmetic."""
    assert isinstance(samples.dataset, Rows) and samples.streams is not None
    expected, before = [], None
    for index, stream in zip(samples.indices, samples.streams, strict=True):
        value = samples.dataset.values[index]
        expected.append(expected[-1] + value if stream == before else value)
        before = stream
    return expected


def outputs(compiled: ov.CompiledModel, samples: Any, requests: int = 0) -> list[np.ndarray]:
    return [values[0].copy() for values in engine.infer(compiled, samples, requests)]


# ----------------------------------------------------------------------------------------------------- samples for themselves


@pytest.mark.parametrize("model", [summing(), summing(initial=False), collecting()], ids=["sum", "no initial value", "growing"])
@pytest.mark.parametrize("requests", [0, 1, 7])
def test_every_sample_begins_with_the_initial_state(model: ov.Model, requests: int) -> None:
    """Samples ran in several requests, each with a state that nobody reset: a model scored 77.5 % of its own answers."""
    samples = samples_of(model)
    for hint in ("THROUGHPUT", "LATENCY"):
        found = outputs(engine.compile(model, Engine(), hint=hint), samples, requests)
        np.testing.assert_array_equal(np.stack(found), samples.dataset.values)  # type: ignore[attr-defined]


def test_a_model_agrees_with_itself() -> None:
    model = summing()
    samples, metric = samples_of(model), ReferenceError()
    metric.bind(model)
    models = {name: engine.compile(model, Engine(requests=count)) for name, count in (("fp32", 3), ("int8", 5))}
    rows = engine.evaluate_metrics(models, samples, {"error": metric})
    assert not rows["int8"]["error"].any()


def test_measuring_time_begins_afresh_each_time() -> None:
    """A state that grows would make each inference slower than the one before."""
    model, inputs = collecting(), {0: np.ones((1, WIDTH), np.float32)}
    compiled = engine.compile(model, Engine(), hint="LATENCY")
    request = compiled.create_infer_request()
    assert keeps_state(request)
    for _ in range(3):
        infer_once(request, inputs, reset=True)
        assert request.output_tensors[0].shape == [1, WIDTH]
    pool = Requests(compiled, 2)
    for _ in range(5):
        pool.start(inputs)
        assert pool.finish()[0].shape == (1, WIDTH)
    taken: list[int] = []
    inferred = ov.InferRequest.infer

    class Watched:
        def __init__(self, model: ov.CompiledModel) -> None:
            self.model = model

        def create_infer_request(self) -> Any:
            own = self.model.create_infer_request()
            watched = type("Request", (), {"query_state": own.query_state, "reset_state": own.reset_state})()

            def infer(*arguments: Any, **options: Any) -> None:
                inferred(own, *arguments, **options)
                taken.append(own.output_tensors[0].shape[0])

            watched.infer = infer
            return watched

    latency.latency({"model": Watched(compiled)}, inputs, 0.05)
    assert len(taken) > 3 and set(taken) == {1}


def test_models_without_a_state_are_not_asked_for_it() -> None:
    x = op.parameter([1, WIDTH], np.float32, name="x")
    pool = Requests(engine.compile(named(ov.Model([op.relu(x)], [x])), Engine()), 1)
    assert not pool.stateful


# ----------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("hint", ["THROUGHPUT", "LATENCY"])
def test_parts_of_streams_go_on(hint: str) -> None:
    model = summing()
    samples = samples_of(model, STREAMS)
    found = outputs(engine.compile(model, Engine(), hint=hint), samples)
    np.testing.assert_array_equal(np.stack(found), np.stack(sums(samples)))
    assert samples.dataset.read == len(samples)  # type: ignore[attr-defined]


def test_any_choice_of_parts_gives_what_all_give() -> None:
    model = summing()
    samples = samples_of(model, STREAMS)
    expected, compiled = sums(samples), engine.compile(model, Engine())
    for positions in ([49], [50, 0, 119], [7, 8, 9, 3, 60], list(reversed(range(45, 56)))):
        found = outputs(compiled, (samples[position] for position in positions))
        np.testing.assert_array_equal(np.stack(found), np.stack([expected[position] for position in positions]))
    np.testing.assert_array_equal(np.stack(outputs(compiled, samples[:60])), np.stack(expected[:60]))


def test_a_stream_that_is_cut_begins_anew() -> None:
    model, indices = summing(), [3, 4, 5, 9, 10]
    samples = Samples(Rows(20), model_inputs(model), indices, streams=[""] * 5)
    values = samples.dataset.values  # type: ignore[attr-defined]
    expected = [values[3], values[3:5].sum(0), values[3:6].sum(0), values[9], values[9:11].sum(0)]
    np.testing.assert_array_equal(np.stack(outputs(engine.compile(model, Engine()), samples)), np.stack(expected))


def test_several_models_on_the_same_streams() -> None:
    """Each part is read once, however long a stream is."""
    model, metric = summing(), ReferenceError()
    metric.bind(model)
    doubled = model.clone()
    samples = samples_of(model, [""] * 120)
    models = {name: engine.compile(each, Engine()) for name, each in (("fp32", model), ("int8", doubled))}
    rows = engine.evaluate_metrics(models, samples, {"error": metric})
    assert not rows["int8"]["error"].any() and samples.dataset.read == 120  # type: ignore[attr-defined]


def test_models_without_a_state_run_streams_in_parallel() -> None:
    x = op.parameter([1, WIDTH], np.float32, name="x")
    model = named(ov.Model([op.negative(x)], [x]))
    samples = samples_of(model, STREAMS)
    found = outputs(engine.compile(model, Engine()), samples)
    np.testing.assert_array_equal(np.stack(found), -samples.dataset.values)  # type: ignore[attr-defined]


def test_what_follows_an_error_does_not_go_on_from_it() -> None:
    model = summing()
    samples = samples_of(model, ["a"] * 6, 6)
    runner = engine.Runner(engine.compile(model, Engine()))
    taken = [values[0].copy() for values in itertools.islice(runner.infer(samples), 3)]
    wrong = samples[4]._replace(inputs={"x": np.zeros((1, WIDTH + 1), np.float32)})
    with pytest.raises(RuntimeError):
        list(runner.infer([wrong]))
    again = [values[0].copy() for values in runner.infer([samples[3], samples[1]])]
    np.testing.assert_array_equal(np.stack([*taken, *again]), np.stack([sums(samples)[index] for index in (0, 1, 2, 3, 1)]))


def test_samples_of_ones_own_between_the_parts() -> None:
    model = summing()
    samples, alone = samples_of(model, STREAMS), Sample({"x": np.full((1, WIDTH), 9, np.float32)})
    found = outputs(engine.compile(model, Engine()), [samples[0], samples[1], alone, samples[2]])
    expected = sums(samples)
    np.testing.assert_array_equal(np.stack(found), np.stack([expected[0], expected[1], alone.inputs["x"], expected[2]]))


# ----------------------------------------------------------------------------------------------------- what is quantized


def cell() -> ov.Model:
    """A recurrent cell written out, quantized: tanh of what it reads and of its state."""
    generator = np.random.default_rng(1)

    def layer(source: ov.Output, name: str) -> ov.Node:
        low, high = np.float32(-1), np.float32(1)
        quantized = op.fake_quantize(source, low, high, low, high, 256)
        quantized.set_friendly_name(f"{name}/fq")
        weights = op.constant(np.round(generator.normal(size=(WIDTH, WIDTH)) * 40).astype(np.float32) / 127)
        folded = op.fake_quantize(weights, low, high, low, high, 255)
        node = op.matmul(quantized, folded, False, True)
        node.set_friendly_name(name)
        return node

    x = op.parameter([1, WIDTH], np.float32, name="x")
    state = op.read_value(np.zeros((1, WIDTH), np.float32), "h", ov.Type.f32, ov.PartialShape([1, WIDTH]))
    hidden = op.tanh(op.add(layer(x.output(0), "input"), layer(state.output(0), "again")))
    return named(ov.Model([op.result(layer(hidden.output(0), "last"))], [op.assign(hidden, "h")], [x]))


@pytest.mark.parametrize("streams", [None, ["a"] * 5 + ["b"] * 3])
def test_what_is_computed_is_compared_with_the_same_states(streams: list[str] | None) -> None:
    model = cell()
    rows = Rows(8)
    rows.values /= 8
    result = fidelity.check(model, Engine(), samples_ := list(Samples(rows, model_inputs(model), streams=streams)), "f32")
    assert samples_ and "skipped" not in result and result["ratio"] < result["limit"], result
