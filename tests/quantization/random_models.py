"""Small models drawn at random out of everything that can be quantized or that quantizers move through."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
from hypothesis import strategies as st
from openvino import opset1
from openvino import opset13 as op

from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random

CHANNELS = 4
SHAPE = (1, CHANNELS, 6, 6)

Step = Callable[[ov.Node, ov.Node, str, int], ov.Node]


def _depthwise(x: ov.Node, _: ov.Node, name: str, seed: int) -> ov.Node:
    return convolution(x, random(CHANNELS, 1, 1, 3, 3, seed=seed), name, bias=random(CHANNELS, seed=seed), pads_begin=[1], pads_end=[1])


def _split(x: ov.Node, y: ov.Node, name: str, _: int) -> ov.Node:
    halves, others = (op.split(source, np.int64(1), 2) for source in (x, y))
    return named(op.concat([others.output(1), halves.output(0)], 1), name)


def _transposed(x: ov.Node, y: ov.Node, name: str, _: int) -> ov.Node:
    turned = (op.transpose(source, np.array([0, 2, 3, 1])) for source in (x, y))
    product = named(op.matmul(*turned, False, True), f"{name}/product")  # [1, 6, 6, 6]
    return named(op.pad(op.slice(product, [0], [CHANNELS], [1], [1]), [0, 0, 0, 0], [0, 0, 0, 0], "constant", np.float32(0)), name)


def _shaped(x: ov.Node, _: ov.Node, name: str, __: int) -> ov.Node:
    return named(op.reshape(op.reshape(x, np.array([1, -1]), False), op.shape_of(x), False), name)


def _deconvolution(x: ov.Node, _: ov.Node, name: str, seed: int) -> ov.Node:
    weights = constant(random(CHANNELS, CHANNELS, 3, 3, seed=seed) / 5, f"{name}/weights")
    return named(op.convolution_backprop_data(x, weights, [1, 1], pads_begin=[1, 1], pads_end=[1, 1]), name)


def _averaged(x: ov.Node, y: ov.Node, name: str, _: int) -> ov.Node:
    mean = named(op.reduce_mean(x, np.array([2, 3]), True), f"{name}/mean")
    return named(op.add(y, mean), name)


def _cut(x: ov.Node, _: ov.Node, name: str, __: int) -> ov.Node:
    corner = op.strided_slice(x, np.array([0, 0, 1, 0]), np.array([1, CHANNELS, 6, 6]), np.ones(4, np.int64), [0] * 4, [0] * 4)
    return named(op.pad(corner, np.array([0, 0, 1, 0]), np.array([0] * 4), "constant", np.float32(0)), name)


def _gathered(x: ov.Node, _: ov.Node, name: str, __: int) -> ov.Node:
    flat = op.squeeze(x, np.array([0]))
    return named(op.unsqueeze(op.gather(flat, np.array([3, 1, 0, 2]), np.int64(0)), np.array([0])), name)


def _compared(x: ov.Node, y: ov.Node, name: str, _: int) -> ov.Node:
    return named(op.select(named(op.greater(x, y), f"{name}/greater"), x, op.tanh(y)), name)


def _fully_connected(x: ov.Node, _: ov.Node, name: str, seed: int) -> ov.Node:
    return matmul(x, random(6, 6, seed=seed) / 2, name, bias=random(6, seed=seed) if seed % 2 else None)


STEPS: dict[str, Step] = {
    "conv": lambda x, _, name, seed: convolution(x, random(CHANNELS, CHANNELS, 1, 1, seed=seed) / 2, name),
    "biased": lambda x, _, name, seed: convolution(
        x, random(CHANNELS, CHANNELS, 3, 3, seed=seed) / 5, name, random(CHANNELS, seed=seed), auto_pad="same_upper"
    ),
    "depthwise": _depthwise,
    "matmul": _fully_connected,
    "relu": lambda x, _, name, __: named(op.relu(x), name),
    "sigmoid": lambda x, _, name, __: named(op.sigmoid(x), name),
    "clamp": lambda x, _, name, __: named(op.clamp(x, 0.0, 6.0), name),
    "add": lambda x, y, name, _: named(op.add(x, y), name),
    "multiply": lambda x, y, name, _: named(op.multiply(x, op.sigmoid(y)), name),
    "maximum": lambda x, y, name, _: named(op.maximum(x, y), name),
    "at most": lambda x, _, name, __: named(op.minimum(constant(2.0, f"{name}/limit"), x), name),
    "scaled": lambda x, _, name, seed: named(op.multiply(x, constant(random(1, CHANNELS, 1, 1, seed=seed), f"{name}/factors")), name),
    "halved": lambda x, _, name, __: named(op.multiply(constant(0.5, f"{name}/half"), x), name),
    "moved": lambda x, _, name, __: named(op.add(x, constant(1.0, f"{name}/one")), name),
    "max pool": lambda x, _, name, __: named(opset1.max_pool(x, [1, 1], [1, 1], [1, 1], [3, 3]), name),
    "average pool": lambda x, _, name, __: named(op.avg_pool(x, [1, 1], [1, 1], [1, 1], [3, 3], False), name),
    "concat": lambda x, y, name, _: named(op.concat([*[x] * 2, y], 1), f"{name}/joined"),
    "split": _split,
    "attention": _transposed,
    "shaped": _shaped,
    "deconvolution": _deconvolution,
    "grouped": lambda x, _, name, seed: convolution(
        x, random(2, 2, 2, 3, 3, seed=seed) / 3, name, bias=random(CHANNELS, seed=seed), pads_begin=[1], pads_end=[1]
    ),
    "subtract": lambda x, y, name, _: named(op.subtract(x, y), name),
    "divide": lambda x, y, name, _: named(op.divide(x, op.add(op.sigmoid(y), op.exp(op.clamp(y, -1.0, 1.0)))), name),
    "squared": lambda x, _, name, __: named(op.power(op.tanh(x), constant(2.0, f"{name}/two")), name),
    "normalized": lambda x, _, name, __: named(op.mvn(x, np.array([1, 2, 3]), True, 1e-2, "inside_sqrt"), name),
    "scaled to one": lambda x, _, name, __: named(op.normalize_l2(x, np.array([1]), 0.1, "add"), name),
    "averaged": _averaged,
    "cut": _cut,
    "gathered": _gathered,
    "compared": _compared,
    "largest": lambda x, y, name, _: named(op.minimum(y, op.reduce_max(x, np.array([2, 3]), True)), name),
    "resized": lambda x, _, name, __: named(op.interpolate(x, np.array([6, 6]), "nearest", "sizes", axes=np.array([2, 3])), name),
}


@st.composite
def models(draw: st.DrawFn) -> ov.Model:
    """A model with one or two inputs and one or more outputs; all tensors are [1, 4, 6, 6]."""
    inputs = [parameter(SHAPE, name) for name in ("x", "y")[: draw(st.integers(1, 2))]]
    tensors: list[ov.Node] = list(inputs)
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(list(STEPS)))
        recent = st.integers(max(0, len(tensors) - 4), len(tensors) - 1)
        node = STEPS[kind](tensors[draw(recent)], tensors[draw(recent)], f"{index} {kind}", index)
        if kind == "concat":
            node = convolution(node, random(CHANNELS, 3 * CHANNELS, 1, 1, seed=index) / 4, f"{index} after concat")
        tensors.append(node)
    ends = [node for node in tensors if not node.output(0).get_target_inputs()]
    also = draw(st.sampled_from(tensors))
    return model([*ends, *([] if also in ends or also in inputs else [also])], *inputs)
