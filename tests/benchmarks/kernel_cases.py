"""Small models, one per operation, shape and neighbourhood, on which INT8 kernels are tried (kernel_faults.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import openvino as ov
from openvino import opset1
from openvino import opset13 as op

from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random
from tests.quantization.test_recurrent import network

Step = Callable[[ov.Node], ov.Node]

IMAGE, ROWS = (1, 4, 8, 8), (2, 6, 8)


class Case(NamedTuple):
    """A model by name, and the shapes of its inputs, which the model may have as dynamic.

    about_weights: whether few bits for its weights are worth a try.
    """

    name: str
    build: Callable[[], ov.Model]
    shapes: dict[str, tuple[int, ...]]
    about_weights: bool = False


def _case(name: str, shape: tuple[int, ...], *steps: Step, dynamic: bool = False, about_weights: bool = False) -> Case:
    """The steps one after the other, from the input to the only output."""

    def build() -> ov.Model:
        x = parameter((-1, *shape[1:]) if dynamic else shape)
        node = x
        for step in steps:
            node = step(node)
        built = model(node, x)
        for index, operation in enumerate(built.get_ordered_ops()):  # a step may be there twice
            if operation.get_type_name() not in ("Parameter", "Result"):
                operation.set_friendly_name(f"{index} {operation.get_friendly_name()}")
        return built

    return Case(f"{name}{' dynamic' if dynamic else ''} {list(shape)}", build, {"x": shape}, about_weights)


# --------------------------------------------------------------------------------------------------------------- steps


def _relu(x: ov.Node) -> ov.Node:
    return named(op.relu(x), "relu")


def _tanh(x: ov.Node) -> ov.Node:
    return named(op.tanh(x), "tanh")


def _conv(x: ov.Node, name: str = "conv", outputs: int = 4) -> ov.Node:
    shape = list(x.output(0).get_partial_shape())
    kernel = random(outputs, shape[1].get_length(), *[3] * (len(shape) - 2), seed=len(shape)) / 4
    return convolution(x, kernel, name, bias=random(outputs), pads_begin=[1], pads_end=[1])


def _last(x: ov.Node, name: str = "last") -> ov.Node:
    """A MatMul over the last dimension."""
    size = list(x.output(0).get_partial_shape())[-1].get_length()
    return matmul(x, random(size, 6, seed=3) / 2, name)


def _weights(*shape: int, left: bool = False, bias: bool = False, transposed: bool = False) -> Step:
    def step(x: ov.Node) -> ov.Node:
        if left:
            return named(op.matmul(constant(random(*shape) / 2, "weights"), x, transposed, False), "matmul")
        return matmul(x, random(*shape) / 2, "matmul", bias=random(shape[-1]) if bias else None, transpose_b=transposed)

    return step


def _deconvolution(kernel: int, stride: int, groups: int = 1, spatial: int = 2) -> Step:
    def step(x: ov.Node) -> ov.Node:
        pads, strides = [1] * spatial, [stride] * spatial
        if groups > 1:
            weights = constant(random(groups, 4 // groups, 3, *[kernel] * spatial) / 4, "weights")
            return named(op.group_convolution_backprop_data(x, weights, strides, pads_begin=pads, pads_end=pads), "deconvolution")
        weights = constant(random(4, 3, *[kernel] * spatial) / 4, "weights")
        return named(op.convolution_backprop_data(x, weights, strides, pads_begin=pads, pads_end=pads), "deconvolution")

    return step


def _average(pads: int, exclude: bool, stride: int = 1) -> Step:
    return lambda x: named(op.avg_pool(x, [stride] * 2, [pads] * 2, [pads] * 2, [3, 3], exclude), "average")


def _pad(value: float, mode: str = "constant", axes: tuple[int, ...] = (3,)) -> Step:
    def step(x: ov.Node) -> ov.Node:
        amount = [2 if axis in axes else 0 for axis in range(len(list(x.output(0).get_partial_shape())))]
        fill = [np.float32(value)] if mode == "constant" else []
        return named(op.pad(x, [0] * len(amount), amount, mode, *fill), "pad")

    return step


def _elementwise(name: str, shape: tuple[int, ...], first: bool = False, positive: bool = False) -> Step:
    def step(x: ov.Node) -> ov.Node:
        values = np.abs(random(*shape)) + 0.5 if positive else random(*shape)
        other = constant(values, f"{name}/constant")
        pair = (other, x) if first else (x, other)
        return named(getattr(op, name)(*pair), name)

    return step


def _of_two(name: str) -> Step:
    """An element-wise operation on two activations, the second one from 1 to 2."""

    def step(x: ov.Node) -> ov.Node:
        above = named(op.add(op.sigmoid(x), constant([[1.0]], "one")), "above")
        return named(getattr(op, name)(x, above), name)

    return step


def _product(transposed: tuple[bool, bool], own: bool = False) -> Step:
    """A MatMul of two activations."""

    def step(x: ov.Node) -> ov.Node:
        other = x if own else named(op.sigmoid(x), "gate")
        return named(op.matmul(x, other, *transposed), "product")

    return step


def _normalized(axes: tuple[int, ...], eps: float, mode: str = "add") -> Step:
    return lambda x: named(op.normalize_l2(x, np.array(axes), eps, mode), "normalized")


def _resized(mode: str) -> Step:
    def step(x: ov.Node) -> ov.Node:
        return named(op.interpolate(x, np.array([2.0, 2.0], np.float32), mode, "scales", axes=np.array([2, 3])), "resized")

    return step


def _joined(x: ov.Node) -> ov.Node:
    """A Concat of tensors with different ranges."""
    return named(op.concat([_tanh(x), named(op.exp(x), "exp"), named(op.relu(x), "relu")], 1), "joined")


def _residual(x: ov.Node) -> ov.Node:
    layer = _conv(x, "first", x.output(0).get_shape()[1])
    return named(op.add(named(op.relu(layer), "relu"), x), "sum")


PASSING: dict[str, Step] = {
    "MaxPool padded": lambda x: named(opset1.max_pool(x, [1, 1], [1, 1], [1, 1], [3, 3]), "pool"),
    "Transpose": lambda x: named(op.transpose(x, np.array([0, 1, 3, 2])), "turned"),
    "Reshape": lambda x: named(op.reshape(x, np.array([1, 8, 4, 8]), False), "shaped"),
    "Split": lambda x: named(op.split(x, np.int64(1), 2), "parts").output(1).get_node(),
    "StridedSlice": lambda x: named(
        op.strided_slice(x, np.array([0, 0, 1, 0]), np.array([1, 4, 8, 8]), np.ones(4, np.int64), [0] * 4, [0] * 4), "cut"
    ),
    "Gather": lambda x: named(op.gather(x, np.array([3, 1, 0, 2]), np.int64(1)), "picked"),
    "DepthToSpace": lambda x: named(op.depth_to_space(x, "blocks_first", 2), "unfolded"),
    "Tile": lambda x: named(op.tile(x, np.array([1, 2, 1, 1])), "tiled"),
    "Broadcast": lambda x: named(op.broadcast(x, np.array([2, 4, 8, 8])), "spread"),
    "ShuffleChannels": lambda x: named(op.shuffle_channels(x, 1, 2), "shuffled"),
    "Minimum 0.7": lambda x: named(op.minimum(x, constant(0.7, "limit")), "limited"),
    "Minimum -0.7": lambda x: named(op.minimum(x, constant(-0.7, "limit")), "limited"),
    "Maximum 0.2": lambda x: named(op.maximum(x, constant(0.2, "limit")), "limited"),
    "Maximum -0.2": lambda x: named(op.maximum(x, constant(-0.2, "limit")), "limited"),
    "Clamp": lambda x: named(op.clamp(x, -0.5, 0.7), "clamped"),
    "ReduceMax": lambda x: named(op.reduce_max(x, np.array([2]), True), "largest"),
    "ReduceMean": lambda x: named(op.reduce_mean(x, np.array([2]), True), "mean"),
    "ReduceMean of channels": lambda x: named(op.reduce_mean(x, np.array([1]), True), "mean"),
    "AvgPool": _average(0, False),
    "AvgPool padded": _average(1, True),
    "AvgPool padded, pads counted": _average(1, False),
    "AvgPool padded, pads counted, stride 2": _average(1, False, 2),
    "Interpolate nearest": _resized("nearest"),
    "Interpolate linear": _resized("linear_onnx"),
    "Interpolate cubic": _resized("cubic"),
    "MVN": lambda x: named(op.mvn(x, np.array([2, 3]), True, 1e-3, "inside_sqrt"), "mvn"),
    "MVN large eps": lambda x: named(op.mvn(op.multiply(x, constant(0.1, "tenth")), np.array([2, 3]), True, 0.1, "inside_sqrt"), "mvn"),
    "NormalizeL2": _normalized((1,), 1e-9),
    "NormalizeL2 large eps": _normalized((1,), 0.1),
    "NormalizeL2 max": _normalized((1,), 0.5, "max"),
    "Power": lambda x: named(op.power(x, constant(2.0, "two")), "squared"),
    "Concat": _joined,
    "Pad 0": _pad(0.0),
    "Pad 0 of rows": _pad(0.0, axes=(2, 3)),
    "Pad 0.5": _pad(0.5),
    "Pad -0.3": _pad(-0.3),
    "Pad -5": _pad(-5.0),
    "Pad 9": _pad(9.0),
    "Pad of channels 0": _pad(0.0, axes=(1,)),
    "Pad edge": _pad(0.0, "edge"),
    "Pad reflect": _pad(0.0, "reflect"),
    "Residual": _residual,
}
BEFORE: dict[str, list[Step]] = {"signed": [], "relu": [_relu], "tanh": [_tanh], "conv relu": [_conv, _relu]}
AFTER: dict[str, Step] = {"MatMul": _last, "Convolution": lambda x: _conv(x, "second")}


# --------------------------------------------------------------------------------------------------------------- cases


def random_cases(count: int) -> Iterator[Case]:
    """Models that nobody thought of, always the same ones."""
    if not count:
        return
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.quantization.random_models import models

    found: list[ov.Model] = []

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(models())
    def collect(built: ov.Model) -> None:
        found.append(built)

    collect()
    for index, built in enumerate(found):
        shapes = {value.get_any_name(): tuple(value.shape) for value in built.inputs}
        steps = [node.get_friendly_name() for node in built.get_ordered_ops() if node.get_friendly_name()[0].isdigit()]
        yield Case(f"random {index}: {', '.join(name for name in steps if '/' not in name)}", partial(_same, built), shapes)


def _same(built: ov.Model) -> ov.Model:
    return built


def cases() -> Iterator[Case]:
    """All that are written down here."""
    yield from _matmuls()
    yield from _products()
    yield from _convolutions()
    for between, step in PASSING.items():
        for before, first in BEFORE.items():
            for after, last in AFTER.items():
                yield _case(f"{before} > {between} > {after}", IMAGE, *first, step, last)
    yield from _elementwises()
    yield from _others()


def _matmuls() -> Iterator[Case]:
    right = (
        ((8, 16), (16, 5)),
        ((2, 6, 8), (8, 5)),
        ((2, 6, 8), (1, 8, 5)),
        ((2, 6, 8), (2, 8, 5)),
        ((1, 6, 8), (2, 8, 5)),
        ((1, 3, 6, 8), (8, 5)),
        ((1, 3, 6, 8), (1, 1, 8, 5)),
        ((1, 3, 6, 8), (3, 8, 5)),
        ((1, 3, 6, 8), (1, 3, 8, 5)),
        ((1, 2, 3, 6, 8), (8, 5)),
        ((1, 2, 3, 6, 8), (1, 1, 1, 8, 5)),
        ((3, 40), (40, 70)),
        ((1, 64), (64, 33)),
    )
    left = (
        ((8, 16), (4, 8)),
        ((2, 8, 16), (4, 8)),
        ((2, 8, 16), (2, 4, 8)),
        ((2, 8, 16), (1, 4, 8)),
        ((1, 3, 8, 16), (4, 8)),
        ((1, 3, 8, 16), (1, 1, 4, 8)),
        ((40, 20), (33, 40)),
    )
    for before, dynamic, bias in (("signed", False, False), ("signed", True, True), ("relu", False, True)):
        add = partial(_case, dynamic=dynamic, about_weights=True)
        for shape, kernel in right:
            name = f"{before} > MatMul W{list(kernel)}{' and bias' if bias else ''}"
            yield add(name, shape, *BEFORE[before], _weights(*kernel, bias=bias))
        for shape, kernel in left:
            yield add(f"{before} > MatMul, left W{list(kernel)}", shape, *BEFORE[before], _weights(*kernel, left=True))
    yield _case("signed > MatMul, W transposed", (2, 6, 8), _weights(5, 8, transposed=True), about_weights=True)
    yield _case("signed > MatMul, left W transposed", (8, 16), _weights(8, 4, left=True, transposed=True), about_weights=True)
    for name, step in {"NormalizeL2": _normalized((2,), 1e-9), "NormalizeL2 large eps": _normalized((2,), 0.1), "Tanh": _tanh}.items():
        for kernel in ((8, 5), (2, 8, 5)):
            yield _case(f"{name} > MatMul W{list(kernel)}", (2, 6, 8), step, _weights(*kernel), dynamic=True)


def _products() -> Iterator[Case]:
    """MatMuls of two activations, and what may be fused into them."""
    for shape in ((1, 6, 12), (2, 3, 6, 12), (6, 12)):
        for name, step in {
            "x^T x": _product((True, False), own=True),
            "x^T gate": _product((True, False)),
            "x gate^T": _product((False, True)),
        }.items():
            size = 12 if "x^T" in name[:3] else 6
            ones = (1,) * (len(shape) - 2)
            yield _case(name, shape, step)
            yield _case(f"{name} > MatMul", shape, step, _last)
            for after, constant_shape in {
                "number": (1,),
                "column": (*ones, size, 1),
                "row": (*ones, 1, size),
                "matrix": (*ones, size, size),
                "first": (*shape[:-2], 1, 1),
            }.items():
                yield _case(f"{name} > subtract {after} > MatMul", shape, step, _elementwise("subtract", constant_shape), _last)
                yield _case(f"{name} > Tanh > multiply {after}", shape, step, _tanh, _elementwise("multiply", constant_shape))
                scaled = [step, _elementwise("multiply", (1,)), _elementwise("subtract", constant_shape)]
                yield _case(f"{name} > multiply number > subtract {after}", shape, *scaled)


def _convolutions() -> Iterator[Case]:
    add = partial(_case, about_weights=True)
    for before, steps in (("signed", []), ("relu", [_relu]), ("tanh", [_tanh])):
        for shape in ((1, 4, 12), (2, 4, 8, 8), (1, 4, 5, 6, 6)):
            yield add(f"{before} > Convolution", shape, *steps, _conv, dynamic=before == "relu")
        for shape in ((1, 4, 12), (1, 4, 8, 8), (1, 4, 5, 6, 6)):
            spatial = [3] * (len(shape) - 2)
            depthwise = partial(convolution, weights=random(4, 1, 1, *spatial), name="depthwise", bias=random(4))
            yield add(f"{before} > depthwise", shape, *steps, depthwise)
            grouped = partial(convolution, weights=random(2, 3, 2, *spatial), name="grouped", bias=random(6))
            yield add(f"{before} > grouped", shape, *steps, grouped)
            for kernel, stride in ((3, 1), (4, 2)):
                step = _deconvolution(kernel, stride, spatial=len(spatial))
                yield add(f"{before} > deconvolution {kernel}/{stride}", shape, *steps, step)
        yield add(f"{before} > grouped deconvolution", IMAGE, *steps, _deconvolution(3, 1, groups=2))
        for values in ((1, 4, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (1, 4, 8, 8)):
            yield _case(f"{before} > Convolution > subtract {list(values)}", IMAGE, *steps, _conv, _elementwise("subtract", values))


def _elementwises() -> Iterator[Case]:
    above = [lambda x: named(op.add(op.sigmoid(x), constant([[0.5]], "half")), "above")]
    for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
        for shape in ((1, 8), (2, 6, 8), IMAGE, (1, 2, 4, 5, 6)):
            ones = (1,) * (len(shape) - 2)
            for values in dict.fromkeys((shape, (1, shape[1], *ones), (shape[-1],), (*ones, shape[-2], 1))):
                yield _case(f"{name} {list(values)} > MatMul", shape, _elementwise(name, values, positive=name == "divide"), _last)
            if name in ("subtract", "divide"):
                first = _elementwise(name, (1, shape[1], *ones), first=True)
                yield _case(f"{name}, constant first > MatMul", shape, *(above if name == "divide" else []), first, _last)
        for shape in ((2, 6, 8), IMAGE):
            yield _case(f"{name} of two > MatMul", shape, _of_two(name), _last)
            yield _case(f"relu > {name} of two > MatMul", shape, _relu, _of_two(name), _last)


def _others() -> Iterator[Case]:
    for kind in ("LSTMSequence", "GRUSequence"):
        yield Case(f"relu > {kind}", partial(network, kind), {"x": (1, 5, 6)})
    yield _case("vector > MatMul", (8,), _weights(8, 5))
    for name in ("multiply", "add"):
        yield _case(f"{name} with a size > MatMul", (2, 6, 8), partial(_with_size, name), _last, dynamic=True)


def _with_size(name: str, x: ov.Node) -> ov.Node:
    """An element-wise operation with a value that is computed from the input's shape."""
    size = op.convert(op.gather(op.shape_of(x), np.array([1]), np.int64(0)), "f32")
    return named(getattr(op, name)(x, named(op.divide(size, constant([6.0], "six")), "size")), name)
