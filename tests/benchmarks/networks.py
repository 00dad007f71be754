"""Well-known networks with random weights, in the shape in which frameworks export them: what a benchmark of time needs.

Weights are drawn so that activations keep their size from layer to layer (He et al. 2015), with batch normalisation
folded into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset1
from openvino import opset13 as op

TOKENS, VOCABULARY, WIDTH, HEADS, HIDDEN, LAYERS = 128, 1000, 512, 8, 2048, 6
# (expansion, output channels, repetitions, stride of the first) as in table 2 of Sandler et al. 2018.
INVERTED_RESIDUALS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# (inner channels, repetitions, stride of the first) as in table 1 of He et al. 2016.
BOTTLENECKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class _Builder:
    """Adds layers with names of their own and weights from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.count = 0

    def name(self, node: ov.Node, kind: str) -> ov.Node:
        node.set_friendly_name(f"{kind}_{self.count}")
        self.count += 1
        return node

    def constant(self, values: NDArray[Any]) -> ov.Node:
        return self.name(op.constant(values.astype(np.float32)), "constant")

    def normal(self, shape: Sequence[int], spread: float) -> ov.Node:
        return self.constant(self.generator.normal(0.0, spread, tuple(shape)))

    def convolution(self, x: ov.Node, channels: int, kernel: int, stride: int = 1, gain: float = 2.0, depthwise: bool = False) -> ov.Node:
        inputs, pads = x.get_output_shape(0)[1], [(kernel - 1) // 2] * 2
        spread = math.sqrt(gain / (kernel * kernel * (1 if depthwise else inputs)))
        strides, ones = [stride, stride], [1, 1]
        if depthwise:
            weights = self.normal((channels, 1, 1, kernel, kernel), spread)
            y = op.group_convolution(x, weights, strides, pads, pads, ones)
        else:
            y = op.convolution(x, self.normal((channels, inputs, kernel, kernel), spread), strides, pads, pads, ones)
        return self.name(op.add(self.name(y, "convolution"), self.normal((1, channels, 1, 1), 0.1)), "bias")

    def relu(self, x: ov.Node) -> ov.Node:
        return self.name(op.relu(x), "relu")

    def relu6(self, x: ov.Node) -> ov.Node:
        return self.name(op.clamp(x, 0.0, 6.0), "relu6")

    def add(self, x: ov.Node, y: ov.Node) -> ov.Node:
        return self.name(op.add(x, y), "add")

    def linear(self, x: ov.Node, outputs: int, gain: float = 1.0) -> ov.Node:
        inputs = x.get_output_shape(0)[-1]
        y = self.name(op.matmul(x, self.normal((outputs, inputs), math.sqrt(gain / inputs)), False, True), "matmul")
        return self.name(op.add(y, self.normal((1,) * (len(x.get_output_shape(0)) - 1) + (outputs,), 0.1)), "bias")

    def classes(self, x: ov.Node, classes: int = 1000) -> ov.Node:
        pooled = self.name(op.reduce_mean(x, np.array([2, 3]), False), "pool")
        return self.linear(pooled, classes)

    def normalised(self, x: ov.Node) -> ov.Node:
        size = x.get_output_shape(0)[-1]
        y = self.name(op.mvn(x, np.array([-1]), True, 1e-5, "INSIDE_SQRT"), "mvn")
        scale = self.constant(self.generator.normal(1.0, 0.1, (1, 1, size)))
        return self.name(op.add(self.name(op.multiply(y, scale), "scale"), self.normal((1, 1, size), 0.1)), "norm")


def mobilenet_v2(seed: int = 0) -> ov.Model:
    """MobileNetV2 (Sandler et al. 2018), 3x224x224 -> 1000 classes."""
    build = _Builder(seed)
    image = _input((1, 3, 224, 224))
    x = build.relu6(build.convolution(image, 32, 3, 2))
    for expansion, channels, repetitions, first_stride in INVERTED_RESIDUALS:
        for index in range(repetitions):
            stride, inner = first_stride if index == 0 else 1, x.get_output_shape(0)[1] * expansion
            y = x if expansion == 1 else build.relu6(build.convolution(x, inner, 1))
            y = build.relu6(build.convolution(y, inner, 3, stride, depthwise=True))
            y = build.convolution(y, channels, 1, gain=1.0)
            x = build.add(x, y) if index else y
    return _model(build.classes(build.relu6(build.convolution(x, 1280, 1))), image)


def resnet50(seed: int = 0) -> ov.Model:
    """ResNet50 (He et al. 2016, stride in the 3x3 convolution), 3x224x224 -> 1000 classes."""
    build = _Builder(seed)
    image = _input((1, 3, 224, 224))
    x = build.relu(build.convolution(image, 64, 7, 2))
    x = build.name(opset1.max_pool(x, [2, 2], [1, 1], [1, 1], [3, 3]), "pool")
    for inner, repetitions, first_stride in BOTTLENECKS:
        for index in range(repetitions):
            stride = first_stride if index == 0 else 1
            y = build.relu(build.convolution(x, inner, 1))
            y = build.relu(build.convolution(y, inner, 3, stride))
            y = build.convolution(y, 4 * inner, 1, gain=0.5)
            shortcut = x if index else build.convolution(x, 4 * inner, 1, stride, gain=1.0)
            x = build.relu(build.add(y, shortcut))
    return _model(build.classes(x), image)


def encoder(seed: int = 0) -> ov.Model:
    """A transformer encoder of 6 layers (Vaswani et al. 2017), 128 token numbers -> 128 vectors of 512."""
    build = _Builder(seed)
    tokens = op.parameter([1, TOKENS], np.int64)
    tokens.set_friendly_name("input")
    embedded = build.name(op.gather(build.normal((VOCABULARY, WIDTH), 1.0), tokens, op.constant(np.int64(0))), "embedding")
    x = build.normalised(build.add(embedded, build.normal((1, TOKENS, WIDTH), 0.2)))
    for _ in range(LAYERS):
        x = build.normalised(build.add(x, _attention(build, x)))
        inner = build.name(op.gelu(build.linear(x, HIDDEN), "erf"), "gelu")
        x = build.normalised(build.add(x, build.linear(inner, WIDTH)))
    return _model(x, tokens)


def _attention(build: _Builder, x: ov.Node) -> ov.Node:
    def heads(order: Sequence[int]) -> ov.Node:
        split = build.name(op.reshape(build.linear(x, WIDTH), np.array([0, TOKENS, HEADS, WIDTH // HEADS]), True), "heads")
        return build.name(op.transpose(split, np.array(order)), "transpose")

    query, key, value = heads((0, 2, 1, 3)), heads((0, 2, 3, 1)), heads((0, 2, 1, 3))
    scores = build.name(op.matmul(query, key, False, False), "scores")
    scale = build.constant(np.full((1, 1, 1, 1), 1 / math.sqrt(WIDTH // HEADS)))
    shares = build.name(op.softmax(build.name(op.multiply(scores, scale), "scaled"), -1), "softmax")
    mixed = build.name(op.transpose(build.name(op.matmul(shares, value, False, False), "mixed"), np.array([0, 2, 1, 3])), "transpose")
    return build.linear(build.name(op.reshape(mixed, np.array([0, TOKENS, WIDTH]), True), "joined"), WIDTH)


def _input(shape: Sequence[int]) -> ov.Node:
    image = op.parameter(list(shape), np.float32)
    image.set_friendly_name("input")
    return image


def _model(output: ov.Node, source: ov.Node) -> ov.Model:
    result = op.result(output)
    result.set_friendly_name("output")
    return ov.Model([result], [source], "network")
