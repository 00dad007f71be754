"""Every pattern of ignored blocks: a graph that it finds, with exactly the marked operations, and one that it just misses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from stages.quantization.model import blocks
from stages.quantization.model.blocks import ignored_blocks
from stages.quantization.model.graph import read_graph
from stages.quantization.model.patterns import CPU_GPU, EVERY_DEVICE, PATTERNS, Pattern, pattern
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random

BY_NAME = {candidate.name: candidate for candidate in PATTERNS}
HEADS = ["", " (Convert)", " (Transpose)", " (Convert, Transpose)"]
AFTER_LAYER = ["", " and bias", " and activation", ", bias and activation"]


class Inputs:
    """The model inputs of a case, made on demand."""

    def __init__(self) -> None:
        self.made: dict[str, ov.Node] = {}

    def __call__(self, name: str = "x", shape: tuple[int, ...] = (1, 3, 8, 8), dtype: Any = np.float32) -> ov.Node:
        return self.made.setdefault(name, parameter(shape, name, dtype))


Build = Callable[[Inputs, bool], ov.Node]


def number(value: float = 2.0) -> ov.Node:
    return op.constant(np.full((1, 1, 1, 1), value, np.float32))


def ends(constant_end: bool, inputs: Inputs) -> ov.Node:
    """The constant that a pattern asks for, or a tensor that moves."""
    return number() if constant_end else inputs("other", (1, 1, 1, 1))


def conv(source: ov.Node, name: str, outputs: int = 3) -> ov.Node:
    return convolution(source, random(outputs, source.get_output_shape(0)[1], 1, 1), name)


def add(first: ov.Node, second: ov.Node, name: str) -> ov.Node:
    return named(op.add(first, second), name)


def multiply(first: ov.Node, second: ov.Node, name: str) -> ov.Node:
    return named(op.multiply(first, second), name)


def bias(inputs: Inputs, hit: bool) -> ov.Node:
    return add(ends(hit, inputs), conv(inputs(), "conv"), "bias")


def swish(inputs: Inputs, hit: bool) -> ov.Node:
    biased = add(conv(inputs(), "conv"), number(), "bias")
    return named(op.swish(biased if hit else op.relu(biased)), "swish")


def squeeze_and_excitation(inputs: Inputs, hit: bool) -> ov.Node:
    x = inputs()
    pooled = named((op.reduce_mean if hit else op.reduce_max)(x, np.array([2, 3]), True), "pool")
    squeezed = named(op.relu(add(conv(pooled, "squeeze"), number(), "squeeze_bias")), "activation")
    gate = named(op.sigmoid(add(conv(squeezed, "excite"), number(), "excite_bias")), "gate")
    return multiply(x, gate, "output")


def scale_and_shift(inputs: Inputs, hit: bool) -> ov.Node:
    return add(multiply(op.relu(inputs()), inputs("factor"), "scale"), ends(hit, inputs), "shift")


def before_output(inputs: Inputs, hit: bool) -> ov.Node:
    start = add(op.relu(inputs()), inputs("other"), "start")
    shifted = add(multiply(start, number(), "scale"), number(), "shift")
    return shifted if hit else named(op.relu(shifted), "relu")


def normalised(inputs: Inputs, hit: bool) -> ov.Node:
    mvn = op.mvn(inputs(), np.array([2, 3]), True, 1e-5, "inside_sqrt")
    return add(multiply(mvn, number() if hit else inputs("factor"), "scale"), number(), "shift")


def normalize_l2(inputs: Inputs, hit: bool) -> ov.Node:
    normalized = op.normalize_l2(inputs(), np.array([1]), 1e-5, "add")
    return multiply(inputs("factor"), normalized if hit else op.relu(normalized), "scale")


def preprocessed(kind: str, head: str) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        x = inputs("x", (1, 3, 8, 8), np.uint8 if "Convert" in head else np.float32)
        if "Convert" in head:
            x = named(op.convert(x, "f32"), "convert")
        if "Transpose" in head:
            x = named(op.transpose(x, np.array([0, 1, 3, 2])), "transpose")
        if not hit:
            x = op.relu(x)
        if "scale" in kind:
            x = multiply(x, number(), "scale")
        return add(x, number(), "shift") if "shift" in kind else x

    return build


def subtraction(inputs: Inputs, hit: bool) -> ov.Node:
    return named(op.subtract(inputs() if hit else op.relu(inputs()), number()), "shift")


def reversed_channels(kind: str) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        split = named(op.split(inputs() if hit else op.relu(inputs()), np.int64(1), 3), "split")
        x = named(op.concat([split.output(index) for index in (2, 1, 0)], 1), "concat")
        return add(multiply(x, number(), "scale") if "scale" in kind else x, number(), "shift")

    return build


def softmax(division: bool) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        e = named(op.exp(inputs()), "e")
        total = named((op.reduce_sum if hit else op.reduce_max)(e, np.array([1]), True), "total")
        if division:
            return named(op.divide(e, total), "output")
        return multiply(named(op.power(total, number(-1)), "inverse"), e, "output")

    return build


def attention(kind: str) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        scores = inputs("scores", (2, 4, 4))
        weights = named(op.softmax(scores, 2) if hit else op.relu(scores), "weights")
        if kind == "reshaped softmax":
            weights = named(op.reshape(named(weights, "softmax"), np.array([1, 2, 4, 4]), False), "weights")
        if kind != "reshaped values":
            v = add(inputs("inner", (4, 16)), constant(np.ones(16), "one"), "v")
            v = named(op.reshape(v, np.array([4, 2, 8]), False), "reshape")
            v = named(op.transpose(v, np.array([1, 0, 2])), "transpose" if "gathered" in kind else "values")
            if "gathered" in kind:
                v = named(op.gather(v, np.array([0, 1]), np.int64(0)), "values")
        else:
            v = named(op.reshape(inputs("inner", (4, 16)), np.array([4, 16]), False), "v")
            v = named(op.reshape(named(op.transpose(v, np.array([1, 0])), "transpose"), np.array([2, 4, 8]), False), "values")
        return named(op.matmul(weights, v, False, False), "output")

    return build


def h_swish_after_layer(scaled: bool) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        biased = add(conv(inputs(), "conv"), number(), "bias")
        clamped = named(op.clamp(add(biased, number(), "shift"), 0.0, 6.0), "clamp")
        product = multiply(clamped, biased if hit else inputs("other"), "product")
        return multiply(product, number(), "output") if scaled else product

    return build


def h_swish(inputs: Inputs, hit: bool) -> ov.Node:
    start = add(inputs(), inputs("other"), "start") if hit else named(op.subtract(inputs(), inputs("other")), "start")
    clamped = named(op.clamp(add(start, number(), "shift"), 0.0, 6.0), "clamp")
    return multiply(multiply(clamped, number(), "scale"), start, "output")


def unsqueezed_normalisation(inputs: Inputs, hit: bool) -> ov.Node:
    u = named(op.unsqueeze(inputs("x", (1, 3, 8)), np.int64(3)), "unsqueeze")
    shifted = add(multiply(u, number(), "scale"), ends(hit, inputs), "shift")
    return named(op.squeeze(shifted, np.array([3])), "output")


def batch_index(inputs: Inputs, hit: bool) -> ov.Node:
    a = named(op.subtract(inputs("x", (1, 3, 8)), inputs("y", (1, 3, 8))), "a")
    factor = constant(np.ones((1, 1, 1)), "factor") if hit else inputs("z", (1, 3, 8))
    c = multiply(multiply(a, inputs("y", (1, 3, 8)), "b"), factor, "c")
    e = named(op.unsqueeze(add(c, inputs("y", (1, 3, 8)), "d"), np.int64(3)), "e")
    g = named(op.concat([named(op.concat([e, e], 3), "f")], 3), "g")
    return conv(named(op.reshape(g, np.array([1, 3, 8, 2]), False), "h"), "output")


def detection_shift(inputs: Inputs, hit: bool) -> ov.Node:
    attributes = {"output_size": 7, "sampling_ratio": 2, "pyramid_scales": np.array([4], np.int64), "aligned": False}
    pyramid = [inputs("rois", (5, 4)), inputs("level", (1, 3, 8, 8))]
    detection = named(NodeFactory("opset6").create("ExperimentalDetectronROIFeatureExtractor", pyramid, attributes), "detection")
    source = detection.output(0) if hit else op.relu(detection.output(0)).output(0)
    return named(op.add(source, number()), "shift")


def inverted_comparison(inputs: Inputs, hit: bool) -> ov.Node:
    return named(op.logical_not(named((op.equal if hit else op.less)(inputs(), inputs("other")), "equal")), "output")


def after_layer(middle: str, end: Callable[[ov.Node, Inputs, bool], ov.Node]) -> Build:
    def build(inputs: Inputs, hit: bool) -> ov.Node:
        x = conv(inputs(), "conv")
        if "bias" in middle:
            x = add(x, number(), "bias")
        if "activation" in middle:
            x = named(op.relu(x), "activation")
        return end(x, inputs, hit)

    return build


def layer_scale_and_shift(x: ov.Node, inputs: Inputs, hit: bool) -> ov.Node:
    return add(multiply(x, ends(hit, inputs), "scale"), number(), "shift")


def layer_element_wise(x: ov.Node, inputs: Inputs, hit: bool) -> ov.Node:
    return named(op.divide(x, ends(hit, inputs)), "output")


def scaled_clamp(inputs: Inputs, hit: bool) -> ov.Node:
    return multiply(named(op.clamp(inputs(), 0.0, 6.0), "clamp"), ends(hit, inputs), "scale")


def memory_output(inputs: Inputs, hit: bool) -> ov.Node:
    read = op.read_value(inputs(), "state")
    stored = named(op.assign(read, "state"), "assign")
    return stored if hit else named(op.relu(stored), "relu")


def middle_names(middle: str) -> set[str]:
    return {word for word in ("bias", "activation") if word in middle}


CASES: dict[str, tuple[Build, set[str]]] = {
    "bias of a weighted operation": (bias, {"bias"}),
    "bias and Swish": (swish, {"bias", "swish"}),
    "squeeze-and-excitation": (
        squeeze_and_excitation,
        {"squeeze", "squeeze_bias", "activation", "excite", "excite_bias", "gate"},
    ),
    "scale and shift": (scale_and_shift, {"shift"}),
    "scale and shift before an output": (before_output, {"scale", "shift"}),
    "MVN with scale and shift": (normalised, {"scale", "shift"}),
    "scaled NormalizeL2": (normalize_l2, {"scale"}),
    **{
        f"input preprocessing: {kind}{head}": (
            preprocessed(kind, head),
            {word for word in ("scale", "shift") if word in kind} | {word for word in ("convert", "transpose") if word in head.lower()},
        )
        for kind in ("scale and shift", "shift", "scale")
        for head in HEADS
    },
    "input preprocessing: subtraction": (subtraction, {"shift"}),
    "input preprocessing: reversed channels, scale and shift": (reversed_channels("scale"), {"split", "concat", "scale", "shift"}),
    "input preprocessing: reversed channels and shift": (reversed_channels(""), {"split", "concat", "shift"}),
    "decomposed softmax": (softmax(division=False), {"e", "total", "inverse", "output"}),
    "decomposed softmax (division)": (softmax(division=True), {"e", "total", "output"}),
    "attention output (reshaped softmax)": (
        attention("reshaped softmax"),
        {"softmax", "weights", "v", "reshape", "values", "output"},
    ),
    "attention output": (attention(""), {"weights", "v", "reshape", "values", "output"}),
    "attention output (reshaped values)": (attention("reshaped values"), {"weights", "v", "transpose", "values", "output"}),
    "attention output (gathered values)": (
        attention("gathered values"),
        {"weights", "v", "reshape", "transpose", "values", "output"},
    ),
    "h-swish after a weighted operation": (h_swish_after_layer(scaled=False), {"bias", "shift", "clamp", "product"}),
    "scaled h-swish after a weighted operation": (
        h_swish_after_layer(scaled=True),
        {"bias", "shift", "clamp", "product", "output"},
    ),
    "h-swish": (h_swish, {"shift", "clamp", "scale", "output"}),
    "batch normalisation of an unsqueezed tensor": (unsqueezed_normalisation, {"unsqueeze", "scale", "shift", "output"}),
    "batch index": (batch_index, {"a", "b", "c", "d", "e", "f", "g", "h", "output"}),
    "detection output and shift": (detection_shift, {"detection", "shift"}),
    "inverted comparison": (inverted_comparison, {"equal", "output"}),
    **{
        f"scale and shift after a weighted operation{middle}": (
            after_layer(middle, layer_scale_and_shift),
            {"scale", "shift"} | middle_names(middle),
        )
        for middle in AFTER_LAYER
    },
    **{
        f"element-wise constant after a weighted operation{middle}": (
            after_layer(middle, layer_element_wise),
            {"output"} | middle_names(middle),
        )
        for middle in AFTER_LAYER
    },
    "scaled clamp": (scaled_clamp, {"clamp", "scale"}),
    "memory output": (memory_output, {"result0"}),
}


def found(candidate: Pattern, build: Build, hit: bool, monkeypatch: pytest.MonkeyPatch, device: str | None = None) -> set[str]:
    """Names of the operations that one pattern alone marks."""
    inputs = Inputs()
    tested = model(build(inputs, hit), *inputs.made.values())
    monkeypatch.setattr(blocks, "PATTERNS", (candidate,))
    return {node.name for node in ignored_blocks(read_graph(tested), device or min(candidate.devices))}


def test_every_pattern_has_a_case() -> None:
    assert list(CASES) == [candidate.name for candidate in PATTERNS] and len(BY_NAME) == len(PATTERNS)


@pytest.mark.parametrize("name", CASES)
def test_a_pattern_marks_its_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, marked = CASES[name]
    assert found(BY_NAME[name], build, True, monkeypatch) == marked


@pytest.mark.parametrize("name", CASES)
def test_a_near_miss_is_not_marked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, _ = CASES[name]
    assert found(BY_NAME[name], build, False, monkeypatch) == set()


@pytest.mark.parametrize("name", CASES)
def test_a_pattern_counts_on_its_devices_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, marked = CASES[name]
    for device in EVERY_DEVICE:
        expected = marked if device in BY_NAME[name].devices else set()
        assert found(BY_NAME[name], build, True, monkeypatch, device) == expected


def test_devices() -> None:
    assert BY_NAME["attention output (gathered values)"].devices == EVERY_DEVICE - {"CPU_SPR"}
    assert BY_NAME["scaled clamp"].devices == CPU_GPU | {"NPU"}
    assert BY_NAME["memory output"].devices == {"GNA"}
    for middle in AFTER_LAYER:
        for what in ("scale and shift", "element-wise constant"):
            assert BY_NAME[f"{what} after a weighted operation{middle}"].devices == CPU_GPU


@pytest.mark.parametrize("name", [name for name in CASES if "after a weighted operation" in name and "h-swish" not in name])
def test_a_second_consumer_on_the_way_up_to_the_layer_prevents_the_match(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, _ = CASES[name]

    def branched(inputs: Inputs, hit: bool) -> ov.Node:
        end = build(inputs, hit)
        layer = next(node for node in walk_up(end) if node.get_friendly_name() == "conv")
        return named(op.concat([end, op.relu(layer)], 1), "joined")

    assert found(BY_NAME[name], branched, True, monkeypatch) == set()


def walk_up(node: ov.Node) -> list[ov.Node]:
    sources = [value.get_node() for value in node.input_values()]
    return [node, *(above for source in sources for above in walk_up(source))]


def test_commutative_inputs_match_in_either_order_others_do_not() -> None:
    def matches(text: str, output: ov.Node, *inputs: ov.Node) -> bool:
        graph = read_graph(model(output, *inputs))
        lines = pattern("tested", text).lines
        return any(list(blocks.match(lines, node)) for node in graph.nodes)

    x = parameter()
    assert matches("r = Relu()\ny* = Add(r, const)", op.add(number(), op.relu(x)), x)
    assert not matches("r = Relu()\ny* = Subtract(r, const)", op.subtract(number(), op.relu(x)), x)
    assert matches("r = Relu()\ny* = Subtract(r)", op.subtract(number(), op.relu(x)), x)
    assert matches("r = Relu()\ny* = Add(r, r)", op.add(*[op.relu(x)] * 2), x)
    assert not matches("r = Relu()\ny* = Add(r, r)", op.add(op.relu(x), op.relu(x)), x)


def test_a_line_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ValueError, match="pattern broken: cannot read 'y = Add'"):
        pattern("broken", "x = Relu()\ny = Add")


def test_detection_post_processing_is_marked_up_to_the_layers() -> None:
    x = parameter()
    layer = matmul(named(op.reshape(convolution(x, random(3, 3, 1, 1)), np.array([3, 64]), False), "above"), random(64, 10), "layer")
    scores = named(op.sigmoid(layer), "scores")
    top = named(op.topk(named(op.exp(scores), "scaled"), np.int64(3), 1, "max", "value"), "top")
    graph = read_graph(model(named(op.relu(top.output(0)), "below"), x))
    marked = {node.name: why for node, why in ignored_blocks(graph, "ANY").items()}
    assert marked == dict.fromkeys(("scores", "scaled", "top"), "detection post-processing")
